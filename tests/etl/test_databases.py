"""Connections that cannot be opened: what passes by itself, and what somebody has to correct."""

from __future__ import annotations

import psycopg2
import pytest

from etl.databases import _refused, connect
from etl.errors import RefusedError, UnavailableError
from etl.settings import settings
from tests.postgres import rows


def test_a_server_that_is_not_there_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_POSTGRES_PORT", "1")
    monkeypatch.setenv("WAREHOUSE_PORT_OFFSET", "0")
    settings.cache_clear()
    try:
        with pytest.raises(UnavailableError, match=r"does not answer: .*Connection refused"):
            connect("etl", "warehouse")
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_role_that_the_server_does_not_let_in_is_a_refusal(postgres_server: None) -> None:
    rows("ALTER ROLE extractor NOLOGIN", role="postgres", dbname="postgres")
    try:
        with pytest.raises(RefusedError, match=r"refuses role extractor for database bank: .*not permitted to log in") as found:
            connect("extractor", "bank")
    finally:
        rows("ALTER ROLE extractor LOGIN", role="postgres", dbname="postgres")
    assert "run again" not in str(found.value)


def test_a_wrong_password_and_a_missing_database_are_refusals(postgres_server: None) -> None:
    with pytest.raises(RefusedError, match='database "no_such" does not exist'):
        connect("etl", "no_such")
    before = settings().passfile.read_text()
    settings().passfile.write_text("".join(f"{line.rpartition(':')[0]}:wrong\n" for line in before.splitlines()))
    try:
        with pytest.raises(RefusedError, match="password authentication failed"):
            connect("etl", "warehouse")
    finally:
        settings().passfile.write_text(before)


def test_a_server_without_room_for_another_session_is_an_outage(postgres_server: None) -> None:
    rows("ALTER ROLE extractor CONNECTION LIMIT 0", role="postgres", dbname="postgres")
    try:
        with pytest.raises(UnavailableError, match=r"takes no connection now: .*too many connections"):
            connect("extractor", "bank")
    finally:
        rows("ALTER ROLE extractor CONNECTION LIMIT -1", role="postgres", dbname="postgres")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('connection to server at "h", port 1 failed: FATAL:  the database system is starting up', UnavailableError),
        ('connection to server at "h", port 1 failed: FATAL:  the database system is shutting down', UnavailableError),
        ('connection to server at "h", port 1 failed: FATAL:  sorry, too many clients already', UnavailableError),
        ('connection to server at "h", port 1 failed: server closed the connection unexpectedly\n\tThis probably means', UnavailableError),
        ('connection to server at "h", port 1 failed: timeout expired', UnavailableError),
        ('could not translate host name "h" to address: Name or service not known', UnavailableError),
        ('connection to server at "h", port 1 failed: FATAL:  Passwort-Authentifizierung für Benutzer »etl« fehlgeschlagen', RefusedError),
        ('connection to server at "h", port 1 failed: FATAL:  no pg_hba.conf entry for host "h", user "etl"', RefusedError),
        ('connection to server at "h", port 1 failed: SSL error: certificate verify failed', RefusedError),
        ('connection to server at "h", port 1 failed: fe_sendauth: no password supplied', RefusedError),
    ],
)
def test_words_of_a_failed_connection_are_told_apart(said: str, kind: type[Exception]) -> None:
    assert type(_refused("etl", "warehouse", str(psycopg2.OperationalError(said)))) is kind
