"""The dashboard without a server: its statements, what it writes, how it is served, and what its pages say when nothing answers."""

from __future__ import annotations

import datetime as dt
import importlib.util
import re
import socket
import subprocess
from decimal import Decimal
from itertools import product

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from etl.dashboard import charts, display, labels, statements
from etl.dashboard.__main__ import ADDRESS, command, refuse_what_cannot_be
from etl.dashboard.answers import ask
from etl.dashboard.statements import OUTCOMES, Filters, Rows, Version
from etl.errors import RefusedError
from etl.settings import ROOT, settings

JUNE = Filters(dt.date(2018, 6, 1), dt.date(2018, 6, 30), "EUR")
VERSION = Version("card_fraud", 3, True)
STATEMENTS = {
    "choices": statements.choices(),
    "versions": statements.versions(),
    "daily": statements.daily(JUNE),
    "champion_quality": statements.champion_quality(JUNE),
    "riskiest_terminals": statements.riskiest_terminals(JUNE, 20),
    "suspicious_customers": statements.suspicious_customers(JUNE, 20),
    "patterns": statements.patterns(JUNE),
    "hours": statements.hours(JUNE),
    "performance": statements.performance(JUNE, VERSION, True),
    "compared": statements.compared(JUNE, False),
    "features": statements.features(JUNE, VERSION, 20),
    "features_by_week": statements.features_by_week(JUNE, VERSION, ["amount"]),
    "checked_days": statements.checked_days(),
    "quality": statements.quality(JUNE.first_on, JUNE.last_on),
    "failed_checks": statements.failed_checks(JUNE.first_on, JUNE.last_on, 50),
    "reject_reasons": statements.reject_reasons(JUNE.first_on, JUNE.last_on, 50),
    "rows": statements.rows(JUNE, Rows(), "newest", 500),
    "how_many": statements.how_many(JUNE, Rows()),
}


def test_filters_become_conditions() -> None:
    chosen = Filters(dt.date(2018, 6, 1), dt.date(2018, 6, 30), "EUR", country=("FR", "DE"), device=("ios",))
    assert chosen.condition == (
        "transacted_on BETWEEN DATE '2018-06-01' AND DATE '2018-06-30' AND currency = 'EUR' "
        "AND country IN ('FR', 'DE') AND device IN ('ios')"
    )
    further = Rows(VERSION, ("HIGH",), "Missed fraud", customer_id=7)
    assert further.condition == (
        "model_name = 'card_fraud' AND model_version = 3 AND risk_level IN ('HIGH') "
        "AND (is_fraud AND NOT coalesce(is_predicted_fraud, false)) AND customer_id = 7"
    )
    assert Rows().condition == ""


def without_literals(statement: str) -> str:
    """What is left of a statement when each of its strings, read as Spark reads them, is one mark."""
    return re.sub(r"'(?:[^'\\]|\\.)*'", "?", statement, flags=re.DOTALL)


@given(st.text(min_size=1))
@example("' OR '1' = '1")
@example("\\' OR true --")
@example("\\")
@example("'; DROP TABLE mart.fraud_daily; --")
def test_a_value_stays_one_literal_whatever_it_holds(value: str) -> None:
    named = Filters(JUNE.first_on, JUNE.last_on, value, (value,), (value,), (value,), (value,))
    model = Version(value, 3)
    further = Rows(model, (value,))
    harmless = Filters(JUNE.first_on, JUNE.last_on, "x", ("x",), ("x",), ("x",), ("x",))
    for builder in (statements.daily, statements.patterns, statements.hours):
        assert without_literals(builder(named)) == without_literals(builder(harmless))
    for builder in (statements.riskiest_terminals, statements.suspicious_customers):
        assert without_literals(builder(named, 20)) == without_literals(builder(harmless, 20))
    assert without_literals(statements.rows(named, further, "newest", 100)) == without_literals(
        statements.rows(harmless, Rows(Version("x", 3), ("x",)), "newest", 100)
    )
    assert without_literals(statements.features_by_week(named, model, [value])) == without_literals(
        statements.features_by_week(harmless, Version("x", 3), ["x"])
    )


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_names_columns_that_the_marts_declare(name: str) -> None:
    models = yaml.safe_load((ROOT / "hive" / "mart" / "models" / "marts.yml").read_text())["models"]
    declared = {model["name"]: {column["name"] for column in model["columns"]} for model in models}
    records = {
        table: set(re.findall(r"^    (\w+) ", (ROOT / "hive" / "ops" / table / "create.hql").read_text(), re.MULTILINE))
        for table in ("model_versions", "checks", "rejects")
    }
    text = without_literals(STATEMENTS[name])
    tables = re.findall(r"(?:FROM|JOIN) (?:mart|ops)\.(\w+)", text)
    known = set().union(*((declared | records)[table] for table in tables))
    made = set(re.findall(r"AS (\w+)", text)) | set(tables)
    words = set(re.findall(r"\b[a-z]\w+\b(?!\()", text)) - {"mart", "ops", "date", "false", "true"}
    assert words - made - known == set()


@pytest.mark.parametrize("name", STATEMENTS)
def test_an_answer_is_bounded(name: str) -> None:
    assert (
        "GROUP BY" in STATEMENTS[name]
        or "LIMIT" in STATEMENTS[name]
        or name in ("checked_days", "how_many", "performance", "quality", "champion_quality")
    )


def test_amounts_are_always_of_one_currency() -> None:
    for name, statement in STATEMENTS.items():
        if re.search(r"sum\((\w*_)?amount", statement):
            assert "currency = 'EUR'" in statement, name


def test_every_outcome_and_order_makes_a_statement() -> None:
    for outcome, order in product(OUTCOMES, statements.ORDERS):
        text = statements.rows(JUNE, Rows(outcome=outcome), order, 100)  # type: ignore[arg-type]
        assert text.endswith(f"ORDER BY {statements.ORDERS[order]} LIMIT 100")
        assert (OUTCOMES[outcome] in text) is True


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("transactions", 1234567, "1,234,567"),
        ("caught_amount", Decimal("1234567.80"), "1,234,567.80"),
        ("precision", 0.8904, "89.0\u00a0%"),
        ("roc_auc", 0.88512, "0.885"),
        ("customer_id", 123456, "123456"),
        ("model_version", 1000, "1000"),
        ("is_fraud", True, "yes"),
        ("is_fraud", None, "–"),
        ("transacted_on", dt.date(2018, 6, 1), "2018-06-01"),
    ],
)
def test_values_are_written_for_people(name: str, value: object, text: str) -> None:
    assert labels.written(name, value) == text


def test_text_of_the_data_is_no_markdown() -> None:
    assert labels.plain("![x](http://evil/x.png)") == r"\!\[x\]\(http\:\/\/evil\/x\.png\)"
    assert labels.plain("web shop – Café") == "web shop – Café"
    assert labels.plain("card_fraud") == r"card\_fraud"


def test_every_column_that_a_tile_explains_is_described() -> None:
    for name in (*statements.COUNTS, *statements.AMOUNTS):
        assert labels.meaning("fraud_daily", name)


def test_a_chart_leaves_out_what_is_unknown_and_keeps_days_in_utc() -> None:
    frame = pd.DataFrame(
        {"transacted_on": [dt.date(2018, 6, 1), dt.date(2018, 6, 2)], "precision": [0.5, None], "recall": [0.25, 1.0]}, dtype=object
    )
    drawn = charts.lines(frame, "transacted_on", ("precision", "recall"), "Share").to_dict()
    assert drawn["encoding"]["x"]["timeUnit"] == "utcyearmonthdate"
    (values,) = drawn["datasets"].values()
    assert [(row["measure"], row["value"]) for row in values] == [
        ("Precision", 0.5),
        ("Precision", None),
        ("Recall", 0.25),
        ("Recall", 1.0),
    ]


def test_only_columns_of_numbers_are_aligned_as_numbers() -> None:
    assert display.is_numeric(pd.Series([None, 1], dtype=object))
    assert display.is_numeric(pd.Series([Decimal("1.5")], dtype=object))
    assert not display.is_numeric(pd.Series(["1"], dtype=object))
    assert not display.is_numeric(pd.Series([True, None], dtype=object))
    assert not display.is_numeric(pd.Series([None], dtype=object))


def test_it_is_served_on_this_machine_only_and_reports_to_nobody() -> None:
    told = command(8501, has_browser=False)
    assert ADDRESS == "127.0.0.1"
    for flag in (
        "--server.address=127.0.0.1", "--server.allowedHosts=127.0.0.1", "--server.allowedHosts=localhost",
        "--server.enableXsrfProtection=true",
        "--server.enableCORS=true", "--browser.gatherUsageStats=false", "--client.showErrorDetails=none", "--server.headless=true",
    ):  # fmt: skip
        assert flag in told
    assert "--server.headless=true" not in command(8501, has_browser=True)


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "bash" / "dashboard.sh", *arguments], capture_output=True, text=True, check=False)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = ran("--no-browser", "--port", str(port))
    assert told.returncode == 3
    assert told.stderr == f"error: port {port} of the dashboard cannot be had: Address already in use; name another with --port\n"


def test_an_environment_without_streamlit_is_told_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r"run bash/setup\.sh"):
        refuse_what_cannot_be(0)


@pytest.mark.parametrize("port", ["80", "x"])
def test_a_port_that_cannot_be_is_wrong_usage(port: str) -> None:
    assert ran("--port", port).returncode == 2


PAGES = ("predicted_fraud", "pattern_analysis", "model_performance", "feature_insight", "data_quality", "raw_data")


def test_every_page_is_one_of_the_navigation() -> None:
    assert re.findall(r'^    "(\w+)": \(', (ROOT / "etl" / "dashboard" / "app.py").read_text(), re.MULTILINE) == list(PAGES)


def drawn(name: str) -> AppTest:
    def script(name: str) -> None:
        import importlib

        from etl.dashboard.framed import framed

        framed("A page", importlib.import_module(f"etl.dashboard.{name}").page)()

    return AppTest.from_function(script, kwargs={"name": name}, default_timeout=60).run()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_which_verb_to_run_when_the_server_is_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind((ADDRESS, 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(settings(), "readers_port", port - settings().port_offset)
    ask.clear()
    page = drawn(name)
    assert [error.value for error in page.error] == [
        f"the readers SQL server at 127.0.0.1:{port} does not answer; start it with bash/stack.sh up"
    ]
    assert not page.exception
