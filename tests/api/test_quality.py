"""What dbt found, as outcomes; and how what failed is told, on a real Postgres."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from api import channels, notify, quality
from api.notice import FailedCheck, Notice
from api.quality import Outcome
from etl import ops
from etl.settings import settings
from ml import marts
from tests.postgres import rows
from tests.receivers import Http

NOTICE = Notice(
    run_id="20260301T100000-abc",
    checked_at="2026-03-01T10:00:00Z",  # type: ignore[arg-type]
    failed_checks=[FailedCheck(table_name="core.transactions", check_name="not_null_amount", severity="error", observed="Got 2 results")],
)


JAVA_ERROR = (
    "Runtime Error in {0} (models/a.sql)\n  Database Error\n    org.apache.hive.service.cli.HiveSQLException: Error running query: "
    "[TABLE_OR_VIEW_NOT_FOUND] org.apache.spark.sql.AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table core.t cannot be found.\n"
    "    \tat org.apache.spark.X\n    \t... 34 more"
)
SENTENCE = "[TABLE_OR_VIEW_NOT_FOUND] The table core.t cannot be found."


def test_outcomes_tell_the_table_the_severity_and_what_was_found() -> None:
    manifest = {
        "sources": {"source.card_fraud.core.terminals": {"relation_name": "core.terminals"}},
        "nodes": {
            "model.card_fraud.fraud_daily": {"relation_name": "mart.fraud_daily"},
            "test.a": {"name": "a", "attached_node": "model.card_fraud.fraud_daily", "config": {"severity": "ERROR"}},
            "test.b": {"name": "b", "attached_node": "model.card_fraud.fraud_daily", "config": {"severity": "warn"}},
            "test.c": {
                "name": "c",
                "config": {"severity": "ERROR"},
                "depends_on": {"nodes": ["source.card_fraud.core.terminals"]},
                "test_metadata": {"kwargs": {"model": "{{ get_where_subquery(source('core', 'terminals')) }}"}},
            },
            "test.d": {"name": "d", "config": {"severity": "ERROR"}, "depends_on": {"nodes": ["model.card_fraud.fraud_daily"]}},
        },
    }
    results = {
        "results": [
            {"unique_id": "test.a", "status": "pass", "failures": 0, "message": None},
            {"unique_id": "test.b", "status": "warn", "failures": 1, "message": "Got 1 result, configured to warn if != 0"},
            {"unique_id": "test.c", "status": "fail", "failures": 2, "message": "Got 2 results, configured to fail if != 0"},
            {"unique_id": "test.d", "status": "error", "failures": None, "message": JAVA_ERROR.format("test d")},
        ]
    }
    assert quality.outcomes_of_tests(results, manifest) == [
        Outcome("mart.fraud_daily", "a", "error", True, "0"),
        Outcome("mart.fraud_daily", "b", "warn", False, "Got 1 result, configured to warn if != 0"),
        Outcome("core.terminals", "c", "error", False, "Got 2 results, configured to fail if != 0"),
        Outcome("mart.fraud_daily", "d", "error", False, SENTENCE),
    ]


def test_what_was_never_loaded_is_not_fresh() -> None:
    results = {
        "results": [
            {"unique_id": "source.card_fraud.core.terminals", "status": "pass", "max_loaded_at": "2026-03-01T10:00:00+00:00"},
            {"unique_id": "source.card_fraud.core.customers", "status": "warn", "max_loaded_at": "2026-03-01T07:00:00+00:00"},
            {"unique_id": "source.card_fraud.scoring.predictions", "status": "runtime error", "error": "no row"},
        ]
    }
    assert quality.outcomes_of_freshness(results) == [
        Outcome("core.terminals", "freshness", "error", True, "loaded 2026-03-01T10:00:00"),
        Outcome("core.customers", "freshness", "warn", False, "loaded 2026-03-01T07:00:00"),
        Outcome("mart.predictions", "freshness", "error", False, "no row"),
    ]


def test_a_warning_that_goes_on_failing_is_told_once_a_day_and_an_error_each_time(postgres_server: None) -> None:
    rows("TRUNCATE ops.runs CASCADE", role="etl", dbname="warehouse")
    warning, other = (Outcome("core.transactions", name, "warn", False, "Got 1 result") for name in ("drift", "volume"))
    error = Outcome("core.transactions", "unique", "error", False, "Got 2 results")
    with ops.run("quality sources") as run:
        assert quality.not_yet_told([warning, error]) == [warning, error]
        quality.keep(run, [warning, error])
    assert quality.not_yet_told([warning, other, error]) == [other, error]
    rows("UPDATE ops.checks SET checked_at = checked_at - interval '1 day'", role="etl", dbname="warehouse")
    assert quality.not_yet_told([warning, error]) == [warning, error]


def test_what_is_shown_is_of_the_newest_run_of_each_part(postgres_server: None) -> None:
    rows("TRUNCATE ops.runs CASCADE", role="etl", dbname="warehouse")
    for verb, names in (("quality sources", ("removed", "kept")), ("quality marts", ("other",)), ("quality sources", ("kept",))):
        with ops.run(verb) as run:
            quality.keep(run, [Outcome("core.transactions", name, "error", name == "other", "") for name in names])
    # One that could not run has found nothing.
    with ops.run("quality sources"):
        pass
    assert [row[1] for row in quality.shown()] == ["kept", "other"]


@pytest.mark.parametrize("kind", ["log", "webhook", "sms", "email"])
def test_every_kind_of_channel_has_words_for_a_notice(kind: str) -> None:
    remote = {"url": "https://example.com/x"} if kind in ("webhook", "sms") else {}
    people = {"sender": "a@example.com", "recipients": ["b@example.com"]} if kind in ("email", "sms") else {}
    host = {"host": "mail.example.com"} if kind == "email" else {}
    here = channels.Configuration.model_validate({"channels": {"it": {"kind": kind, **remote, **people, **host}}})
    text = here.render("it", NOTICE)
    assert "core.transactions" in text
    assert "not_null_amount" in text


def test_a_notice_goes_out_at_once_and_once_and_waits_where_nobody_takes_it(
    postgres_server: None, got: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("TRUNCATE ops.notifications", role="etl", dbname="warehouse")
    (tmp_path / "notify.yaml").write_text(yaml.safe_dump({"channels": {"cases": {"kind": "webhook", "url": got.url}}}))
    monkeypatch.setattr(settings(), "notify_file", tmp_path / "notify.yaml")
    notify.tell(NOTICE)
    notify.tell(NOTICE)
    ((headers, body),) = got.requests
    assert headers["Idempotency-Key"] == "checks-20260301T100000-abc"
    assert json.loads(body)["notice"]["failed_checks"][0]["observed"] == "Got 2 results"
    got.answers.append(503)
    notify.tell(NOTICE.model_copy(update={"run_id": "later"}))
    found = rows("SELECT idempotency_key, state FROM ops.notifications ORDER BY recorded_at", role="etl", dbname="warehouse")
    assert found == [("checks-20260301T100000-abc", "sent"), ("checks-later", "pending")]


def test_the_servers_own_sentence_is_told_without_javas_stack() -> None:
    assert marts.first_line(JAVA_ERROR.format("model a")) == SENTENCE
    assert marts.first_line(None) == ""
