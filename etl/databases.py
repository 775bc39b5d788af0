"""Connections to Postgres: the source `bank` and the warehouse's own records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2

from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.settings import Role, settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def password(role: Role) -> str:
    """Return a role's password from the pgpass file.

    Raises
    ------
    RefusedError
        When the file has none for it.
    """
    path = settings().passfile
    for line in path.read_text().splitlines() if path.exists() else []:
        *_, user, secret = line.rsplit(":", 2)
        if user == role:
            return secret
    raise RefusedError(
        f"{path} has no password of the role {role}; bash/stack.sh up writes one for the local servers",
    )


# What the server itself answers has two spaces behind its severity, in every language; libpq's own words have not.
_ANSWERED = re.compile(r"\b[^\W\d_]+:  ")
_FOR_GOOD = re.compile(r"SSL|certificate|no password supplied|^invalid ")
_LATER = re.compile(
    r"the database system is|too many (clients|connections)|connection slots are reserved|terminating connection",
    re.IGNORECASE,
)


def connect(role: Role, dbname: str, application_name: str = "warehouse") -> connection:
    """Open a connection with UTC as its time zone; the caller closes it.

    Raises
    ------
    UnavailableError
        When the server does not answer, or takes no connection now.
    RefusedError
        When it refuses the role: running again does not help.
    """
    try:
        opened = psycopg2.connect(settings().dsn(role, dbname, application_name), connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise _refused(role, dbname, str(error)) from error
    with opened.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    opened.commit()
    return opened


def _refused(role: Role, dbname: str, said: str) -> WarehouseError:
    """Return why there is no connection: an error at connecting has no SQLSTATE, only words."""
    server = f"Postgres at {settings().postgres_host}:{settings().port('postgres')}"
    sentence = " ".join(said.split())
    if not _ANSWERED.search(said) and not _FOR_GOOD.search(said):
        return UnavailableError(f"{server} does not answer: {sentence}; start it with bash/stack.sh up, or correct the settings")
    if _LATER.search(said):
        return UnavailableError(f"{server} takes no connection now: {sentence}; run again in a moment (bash/stack.sh status)")
    return RefusedError(
        f"{server} refuses role {role} for database {dbname}: {sentence}; correct {settings().passfile} or the server's rights"
    )


@contextmanager
def opened(role: Role, dbname: str, application_name: str = "warehouse") -> Iterator[connection]:
    """Open a connection, commit at the end, roll back on an error, close in any case."""
    session = connect(role, dbname, application_name)
    try:
        with session:
            yield session
    finally:
        session.close()
