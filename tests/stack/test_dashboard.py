"""The dashboard as a person has it: served by its verb, in a real Chromium without a network, from marts that dbt built.

Screenshots of each page, light and dark, are in the folder `dashboard` of the tests' data folder.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from etl import ops, sql_server
from etl.settings import ROOT, settings
from etl.sql_server import Session
from ml import alerts, marts, registry
from ml.params import params
from tests import browser
from tests.postgres import rows

pytestmark = pytest.mark.slow

# A merchant whose name would be a picture from elsewhere, were it read as Markdown.
PICTURE = "![x](http://192.0.2.1/x.png)"
SOURCES = {
    "core.customers": (
        "customer_id BIGINT, country STRING",
        "(1, 'FR'), (2, 'DE'), (3, 'CH')",
    ),
    "core.terminals": (
        "terminal_id BIGINT, terminal_name STRING, country STRING, category STRING",
        f"(1, '{PICTURE}', 'FR', 'grocery'), (2, 'Reise', 'DE', 'travel'), (3, 'Shop', 'FR', 'web shop')",
    ),
    "core.transactions": (
        "transaction_id BIGINT, customer_id BIGINT, terminal_id BIGINT, transacted_at TIMESTAMP, amount DECIMAL(12,2), currency STRING, "
        "channel STRING, device STRING, lane STRING",
        """
        (1, 1, 1, TIMESTAMP '2018-06-01 10:00:00', 1000.50, 'EUR', 'chip', 'card', 'batch'),
        (2, 2, 1, TIMESTAMP '2018-06-01 11:00:00', 20.00, 'EUR', 'online', 'ios', 'batch'),
        (3, 1, 2, TIMESTAMP '2018-06-02 10:00:00', 30.25, 'EUR', 'chip', 'card', 'batch'),
        (4, 2, 2, TIMESTAMP '2018-06-02 23:00:00', 40.00, 'EUR', 'chip', 'card', 'batch'),
        (5, 3, 3, TIMESTAMP '2018-06-03 00:30:00', 1234567.80, 'EUR', 'online', 'windows', 'batch'),
        (6, 3, 3, TIMESTAMP '2018-06-03 09:00:00', 99.00, 'CHF', 'online', 'windows', 'batch'),
        (7, 1, 1, TIMESTAMP '2018-06-20 12:00:00', 10.00, 'EUR', 'contactless', 'android', 'batch')
        """,
    ),
    "core.fraud_reports": (
        "transaction_id BIGINT, is_fraud BOOLEAN, scenario INT, reported_at TIMESTAMP",
        """
        (1, true, 1, TIMESTAMP '2018-06-08 10:00:00'), (2, true, 2, TIMESTAMP '2018-06-08 11:00:00'),
        (6, true, 3, TIMESTAMP '2018-06-10 09:00:00')
        """,
    ),
}
PREDICTIONS = """
    (1, 0.9D, true, 'HIGH', array(named_struct('feature', 'amount', 'contribution', 0.5D))),
    (2, 0.1D, false, 'LOW', array()), (3, 0.8D, true, 'HIGH', array(named_struct('feature', 'amount', 'contribution', 0.25D))),
    (4, 0.2D, false, 'LOW', array()), (5, 0.3D, false, 'LOW', array()),
    (6, 0.7D, true, 'HIGH', array(named_struct('feature', 'is_night', 'contribution', 0.125D)))
"""
MARTS = (
    "scored_transactions", "fraud_daily", "fraud_hourly", "terminal_risk", "customer_activity", "model_performance", "feature_importance",
    "data_quality_daily",
)  # fmt: skip
PAGES = {
    "": "Predicted fraud",
    "pattern_analysis": "Pattern analysis",
    "model_performance": "Model performance",
    "feature_insight": "Feature insight",
    "data_quality": "Data quality",
    "raw_data": "Raw data",
}
# A day of which no other test has records.
RECORDED = "2001-01-01 10:00:00+00"
RECORDS = {"batches": "recorded_at", "rejects": "rejected_at", "checks": "checked_at"}
SECONDS = 60


def clear() -> None:
    with sql_server.session() as hive:
        for table in (*SOURCES, "mart.predictions", "mart.alerts", *(f"mart.{name}" for name in MARTS)):
            hive.run(f"DROP TABLE IF EXISTS {table}")
    for found in registry.client().search_registered_models():
        registry.client().delete_registered_model(found.name)
    for table, moment in RECORDS.items():
        rows(f"DELETE FROM ops.{table} WHERE {moment} = '{RECORDED}'", role="etl", dbname="warehouse")


@pytest.fixture(scope="module")
def served(stack: None) -> Iterator[str]:
    """Serve the dashboard by its verb, without a mart; gives its address."""
    clear()
    port = settings().port("dashboard")
    log = (settings().data_dir / "logs" / "dashboard.log").open("w")
    server = subprocess.Popen(
        [ROOT / "bash" / "dashboard.sh", "--no-browser"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=dict(os.environ)
    )
    until(lambda: is_healthy(port), "the dashboard answers")
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()
    log.close()
    clear()


def is_healthy(port: int) -> bool:
    try:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        asked.request("GET", "/_stcore/health")
        return asked.getresponse().status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def window() -> Iterator[Chrome]:
    with browser.chromium() as window:
        yield window


@pytest.fixture(scope="module")
def built(served: str) -> None:
    """Seven transactions in two currencies, of which six are scored by the champion; the marts of them."""
    with sql_server.session() as hive:
        for table, (columns, values) in SOURCES.items():
            hive.run(f"CREATE TABLE {table} ({columns}) USING iceberg")
            hive.run(f"INSERT INTO {table} VALUES {values}")
        location = f"{settings().hdfs_uri}{settings().warehouse_path}/mart/predictions"
        hive.run_file("hive/mart/predictions/create.hql", location=location, features=[Feature()])
        hive.run(
            "INSERT INTO mart.predictions SELECT t.transaction_id, t.customer_id, t.terminal_id, t.transacted_at, t.amount, "
            f"'{params().name}', 1, p.probability, p.is_fraud, p.risk_level, "
            "cast(p.reasons AS array<struct<feature: string, contribution: double>>), named_struct('amount', 1.0D), "
            f"TIMESTAMP '2018-06-21 00:00:00' FROM core.transactions AS t INNER JOIN (VALUES {PREDICTIONS}) "
            "AS p (transaction_id, probability, is_fraud, risk_level, reasons) USING (transaction_id)"
        )
        alerts.ensure_table(hive)
    with ops.run("test") as one:
        for statement in (
            "batches (run_id, table_name, batch, kind, row_count, bytes, seconds, state, recorded_at) "
            "VALUES (%s, 'transactions', 1, 'full', 1234567, 1, 1, 'published', %s)",
            "rejects (run_id, table_name, origin, column_name, reason, rejected_at) "
            "VALUES (%s, 'transactions', 'bank.csv', 'amount', 'not a number', %s)",
            "checks (run_id, table_name, check_name, severity, is_passed, observed, checked_at) "
            "VALUES (%s, 'core.transactions', 'freshness', 'error', false, '3 days', %s)",
        ):
            rows(f"INSERT INTO ops.{statement}", one.run_id, RECORDED, role="etl", dbname="warehouse")
    registry.client().create_registered_model(params().name)
    tags = {"model": "xgboost", "train_from": "2018-05-01", "train_to": "2018-05-08", "average_precision": "0.5"}
    registry.client().create_model_version(params().name, "file:///nowhere", tags=tags, await_creation_for=0)
    registry.client().set_registered_model_alias(params().name, registry.CHAMPION, "1")
    marts.build(full=True)


class Feature:
    name, type, description = "amount", "double", "Amount"


@pytest.fixture
def readers() -> Iterator[Session]:
    with sql_server.session("readers", user=settings().hdfs_readers_user) as session:
        yield session


def until(is_so: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            if is_so():
                return
        except StaleElementReferenceException:
            # The page was drawn anew meanwhile.
            pass
        assert time.monotonic() < end, f"{what}: not within {SECONDS} s"
        time.sleep(0.2)


def is_drawn(window: Chrome) -> bool:
    return bool(
        window.execute_script(
            "const app = document.querySelector('[data-testid=stApp]');"
            "return app && app.dataset.testScriptState === 'notRunning' && document.querySelector('h1')"
            " && document.querySelector('[data-testid=stSidebar] button') && !document.querySelector('[data-testid=stSpinner]')"
        )
    )


def opened(window: Chrome, address: str) -> None:
    window.get(address)
    until(lambda: is_drawn(window), f"{address} is drawn")


def texts(window: Chrome, selector: str) -> list[str]:
    """Texts of what is on the page; those that are out of sight as well."""
    return window.execute_script("return [...document.querySelectorAll(arguments[0])].map(found => found.textContent.trim())", selector)


def tiles(window: Chrome) -> dict[str, str]:
    names, values = texts(window, "[data-testid=stMetricLabel]"), texts(window, "[data-testid=stMetricValue]")
    return dict(zip(names, values, strict=True))


def tables(window: Chrome) -> dict[str, list[list[str]]]:
    """Tables of the charts by their titles, once opened by keyboard."""
    count = len(window.find_elements(By.CSS_SELECTOR, "[data-testid=stExpander] summary"))
    for number in range(count):
        summary = window.find_elements(By.CSS_SELECTOR, "[data-testid=stExpander] summary")[number]
        summary.send_keys(Keys.ENTER)
    until(
        lambda: len(window.find_elements(By.CSS_SELECTOR, "[data-testid=stExpander] table")) == count,
        "each chart has a table",
    )
    return window.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('[data-testid=stExpander]')].map(found => ["
        "found.querySelector('summary').textContent.trim().replace(/^.*?Table: /, ''),"
        "[...found.querySelectorAll('tbody tr')].map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent.trim()))]))"
    )


def alerts_of(window: Chrome) -> list[str]:
    return texts(window, "[data-testid=stAlert]")


def test_without_marts_a_page_says_which_verb_to_run(served: str, window: Chrome) -> None:
    opened(window, served)
    (told,) = alerts_of(window)
    assert told.startswith("the marts are not made yet, or by older code: run bash/marts.sh, then load this page again")
    assert "Traceback" not in window.page_source


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_loads_from_this_machine_alone_in_the_systems_colours(served: str, built: None, window: Chrome, scheme: str) -> None:
    folder = settings().data_dir / "dashboard"
    folder.mkdir(exist_ok=True)
    browser.prefer(window, scheme)
    browser.requested(window)
    for path, title in PAGES.items():
        opened(window, f"{served}/{path}")
        assert texts(window, "h1") == [title]
        # Data quality says in one how its checks went.
        assert [told for told in alerts_of(window) if "of severity error" not in told] == []
        assert texts(window, "[data-testid=stException]") == []
        save(window, folder / f"{title.lower().replace(' ', '_')}_{scheme}.png")
        (colour,) = [window.execute_script("return getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")]
        assert (max(map(int, re.findall(r"\d+", colour)[:3])) < 80) == (scheme == "dark")
    asked = browser.requested(window)
    assert len(asked) > 20
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(served).netloc}


def save(window: Chrome, path: Path) -> None:
    height = window.execute_script("return document.querySelector('[data-testid=stMain]').scrollHeight")
    size = {"width": 1360, "height": max(1000, height), "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(1)
    window.save_screenshot(str(path))
    window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_tiles_are_what_hiveql_says(served: str, built: None, window: Chrome, readers: Session) -> None:
    opened(window, served)
    assert tiles(window) == {
        "Transactions": "6", "Amount, EUR": "1,235,668.55", "Frauds": "2", "Fraud share": "33.3\u00a0%", "Predicted frauds": "2",
        "Caught frauds": "1", "Money caught, EUR": "1,000.50", "Money missed, EUR": "20.00", "Missed frauds": "1",
        "Unconfirmed alarms": "1",
        "Champion's precision": "66.7\u00a0%", "Champion's recall": "66.7\u00a0%",
    }  # fmt: skip
    assert tiles(window) == told_by_hiveql(readers)


# What pages show, from the tables that the marts are made of.
BANK = (
    "core.transactions AS t LEFT JOIN core.terminals AS m ON t.terminal_id = m.terminal_id "
    "LEFT JOIN core.fraud_reports AS r ON t.transaction_id = r.transaction_id "
    "LEFT JOIN mart.predictions AS p ON t.transaction_id = p.transaction_id"
)
CAUGHT, MISSED = "r.is_fraud AND p.is_fraud", "r.is_fraud AND NOT coalesce(p.is_fraud, false)"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\u00a0%"


def told_by_hiveql(readers: Session) -> dict[str, str]:
    """The tiles of the first page."""
    ((count, amount, frauds, predicted, caught, caught_amount, missed_amount, missed, alarms),) = readers.run(
        f"SELECT count(*), sum(t.amount), count_if(r.is_fraud), count_if(p.is_fraud), count_if({CAUGHT}), "
        f"sum(t.amount) FILTER (WHERE {CAUGHT}), "
        f"sum(t.amount) FILTER (WHERE {MISSED}), count_if({MISSED}), count_if(p.is_fraud AND NOT coalesce(r.is_fraud, false)) "
        f"FROM {BANK} WHERE t.currency = 'EUR'"
    )
    # Of all currencies, on days whose labels have arrived.
    ((all_frauds, all_predicted, all_caught),) = readers.run(
        f"SELECT count_if(r.is_fraud), count_if(p.is_fraud), count_if({CAUGHT}) FROM {BANK} WHERE t.transacted_at < '2018-06-12'"
    )
    return {
        "Transactions": f"{count}", "Amount, EUR": f"{amount:,}", "Frauds": f"{frauds}", "Fraud share": share(frauds, count),
        "Predicted frauds": f"{predicted}", "Caught frauds": f"{caught}", "Money caught, EUR": f"{caught_amount:,}",
        "Money missed, EUR": f"{missed_amount:,}", "Missed frauds": f"{missed}", "Unconfirmed alarms": f"{alarms}",
        "Champion's precision": share(all_caught, all_predicted), "Champion's recall": share(all_caught, all_frauds),
    }  # fmt: skip


def test_tables_of_patterns_and_features_are_what_hiveql_says(served: str, built: None, window: Chrome, readers: Session) -> None:
    opened(window, f"{served}/pattern_analysis")
    found = tables(window)
    for name, column in {"country": "m.country", "channel": "t.channel", "device": "t.device", "category": "m.category"}.items():
        rows = readers.run(
            f"SELECT {column}, count(*), sum(t.amount), count_if(r.is_fraud) FROM {BANK} WHERE t.currency = 'EUR' GROUP BY 1 ORDER BY 1"
        )
        assert [row[:4] for row in found[f"Frauds by {name}"]] == [[value, f"{n}", f"{amount:,}", f"{k}"] for value, n, amount, k in rows]
    opened(window, f"{served}/feature_insight")
    rows = readers.run(
        "SELECT reason.feature, sum(reason.contribution), count(*) FROM (SELECT explode(reasons) AS reason FROM mart.predictions "
        "WHERE risk_level != 'LOW') GROUP BY 1 ORDER BY 2 DESC"
    )
    assert [row[:3] for row in tables(window)["Contribution by feature"]] == [[name, f"{sum_:.3f}", f"{n}"] for name, sum_, n in rows]


def test_each_chart_has_its_numbers_as_a_table_that_the_keyboard_opens(served: str, built: None, window: Chrome) -> None:
    opened(window, served)
    assert tables(window) == {
        "Frauds by day": [
            ["2018-06-01", "2", "2", "1", "1", "1", "0"],
            ["2018-06-02", "2", "0", "1", "0", "0", "1"],
            ["2018-06-03", "1", "0", "0", "0", "0", "0"],
            ["2018-06-20", "1", "0", "0", "0", "0", "0"],
        ],
        "Money caught and missed by day, EUR": [
            ["2018-06-01", "1,020.50", "1,020.50", "1,000.50", "20.00"],
            ["2018-06-02", "70.25", "0.00", "0.00", "0.00"],
            ["2018-06-03", "1,234,567.80", "0.00", "0.00", "0.00"],
            ["2018-06-20", "10.00", "0.00", "0.00", "0.00"],
        ],
    }
    opened(window, f"{served}/pattern_analysis")
    found = tables(window)
    assert found["Frauds by country"] == [
        ["DE", "2", "70.25", "0", "0.0\u00a0%", "0.00", "1", "–", "0.00"],
        ["FR", "4", "1,235,598.30", "2", "50.0\u00a0%", "1,020.50", "1", "50.0\u00a0%", "20.00"],
    ]
    assert [row[:3] for row in found["Frauds by weekday and hour"]] == [
        ["Wednesday", "12", "1"], ["Friday", "10", "1"], ["Friday", "11", "1"], ["Saturday", "10", "1"], ["Saturday", "23", "1"],
        ["Sunday", "0", "1"],
    ]  # fmt: skip
    opened(window, f"{served}/model_performance")
    assert tables(window)["Precision and recall by day"] == [
        ["2018-06-01", "100.0\u00a0%", "50.0\u00a0%", "66.7\u00a0%", "2", "1", "1"],
        ["2018-06-02", "0.0\u00a0%", "–", "0.0\u00a0%", "0", "1", "0"],
        ["2018-06-03", "100.0\u00a0%", "100.0\u00a0%", "100.0\u00a0%", "1", "1", "1"],
    ]
    opened(window, f"{served}/feature_insight")
    assert tables(window)["Contribution by feature"] == [["amount", "0.750", "2", "2"], ["is_night", "0.125", "1", "1"]]


def test_filters_work_by_keyboard_and_stay_from_page_to_page(served: str, built: None, window: Chrome) -> None:
    opened(window, served)
    until(lambda: window.find_elements(By.CSS_SELECTOR, "[aria-label*='Country']"), "the filter of countries is drawn")
    window.find_element(By.CSS_SELECTOR, "[aria-label*='Country']").send_keys("DE", Keys.ENTER)
    until(lambda: is_drawn(window) and tiles(window)["Transactions"] == "2", "only transactions in DE are counted")
    assert tiles(window)["Amount, EUR"] == "70.25"
    assert "country=DE" in window.current_url
    link = window.find_element(By.XPATH, "//*[@data-testid='stSidebarNavLink'][contains(., 'Pattern analysis')]")
    link.send_keys(Keys.TAB)
    assert window.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    link.send_keys(Keys.ENTER)
    until(lambda: is_drawn(window) and "Frauds by country" in tables(window), "the other page is drawn")
    assert texts(window, "h1") == ["Pattern analysis"]
    assert [row[:3] for row in tables(window)["Frauds by country"]] == [["DE", "2", "70.25"]]


def test_amounts_are_of_the_currency_that_is_chosen(served: str, built: None, window: Chrome) -> None:
    opened(window, f"{served}/?currency=CHF")
    shown = tiles(window)
    assert (shown["Transactions"], shown["Amount, CHF"], shown["Money caught, CHF"]) == ("1", "99.00", "99.00")


def test_raw_data_says_how_many_of_how_many_it_shows(served: str, built: None, window: Chrome) -> None:
    opened(window, f"{served}/raw_data")
    assert "The 6 newest of 6 transactions that fit, which come to 1,235,668.55 EUR." in " ".join(texts(window, "[data-testid=stMarkdown]"))
    opened(window, f"{served}/raw_data?outcome=Missed+fraud&channel=online")
    assert "The 1 newest of 1 transactions that fit, which come to 20.00 EUR." in " ".join(texts(window, "[data-testid=stMarkdown]"))


FILTERS = {
    "from=2018-06-02&to=2018-06-03": "t.transacted_at >= '2018-06-02' AND t.transacted_at < '2018-06-04'",
    "country=DE": "m.country = 'DE'",
    "channel=online": "t.channel = 'online'",
    "device=ios": "t.device = 'ios'",
    "category=web+shop": "m.category = 'web shop'",
    "risk=HIGH": "p.risk_level = 'HIGH'",
    "scored_by=VERSION": "p.model_version = 1",
    "outcome=Unconfirmed+alarm": "p.is_fraud AND NOT coalesce(r.is_fraud, false)",
    "customer_id=2": "t.customer_id = 2",
    "terminal_id=1&category=grocery&to=2018-06-01": "t.terminal_id = 1 AND t.transacted_at < '2018-06-02'",
}
"""Filters of the raw page as its address has them, and the same in HiveQL."""


@pytest.mark.parametrize("query", FILTERS)
def test_a_filter_leaves_what_hiveql_leaves(served: str, built: None, window: Chrome, readers: Session, query: str) -> None:
    opened(window, f"{served}/raw_data?{query.replace('VERSION', f'{params().name}+1%2C+champion')}")
    ((count, amount),) = readers.run(f"SELECT count(*), sum(t.amount) FROM {BANK} WHERE t.currency = 'EUR' AND {FILTERS[query]}")
    assert 0 < count < 6
    assert f"The {count} newest of {count} transactions that fit, which come to {amount:,} EUR." in " ".join(
        texts(window, "[data-testid=stMarkdown]")
    )


def test_filters_of_days_device_and_category_count_on_every_page_of_sums(served: str, built: None, window: Chrome) -> None:
    query = "from=2018-06-01&to=2018-06-02&device=card&category=grocery"
    opened(window, f"{served}/?{query}")
    assert (tiles(window)["Transactions"], tiles(window)["Amount, EUR"]) == ("1", "1,000.50")
    opened(window, f"{served}/pattern_analysis?{query}")
    found = tables(window)
    assert [row[:3] for row in found["Frauds by device"]] == [["card", "1", "1,000.50"]]
    assert [row[:3] for row in found["Frauds by weekday and hour"]] == [["Friday", "10", "1"]]


@pytest.mark.parametrize(
    ("order", "by"),
    [("newest", "t.transacted_at DESC"), ("most+suspicious", "p.fraud_probability DESC NULLS LAST"), ("largest", "t.amount DESC")],
)
def test_the_raw_page_has_the_order_that_is_chosen(served: str, built: None, window: Chrome, readers: Session, order: str, by: str) -> None:
    opened(window, f"{served}/raw_data?order={order}")
    until(lambda: first_column(window), "the grid is drawn")
    asked = readers.run(f"SELECT t.transaction_id FROM {BANK} WHERE t.currency = 'EUR' ORDER BY {by}")
    assert first_column(window) == [str(key) for (key,) in asked]


def first_column(window: Chrome) -> list[str]:
    """The first column of a grid, as screen readers have it."""
    return texts(window, "[data-testid=stDataFrame] canvas [role=row] [role=gridcell][aria-colindex='1']")


def test_a_model_version_that_is_chosen_has_its_own_numbers(served: str, built: None, window: Chrome) -> None:
    for page in ("model_performance", "feature_insight"):
        opened(window, f"{served}/{page}?version={params().name}+1%2C+champion")
        assert f"{params().name} 1" in " ".join(texts(window, "[data-testid=stCaptionContainer]"))


def test_data_quality_tells_what_was_loaded_and_what_failed(served: str, built: None, window: Chrome) -> None:
    opened(window, f"{served}/data_quality?checked_from=2001-01-01&checked_to=2001-01-01")
    (told,) = alerts_of(window)
    assert told.startswith("Failed in these days, of checks of severity error, comparisons with the source and batches: 1.")
    shown = tiles(window)
    assert (shown["Loaded rows"], shown["Rejected rows"], shown["Failed errors"]) == ("1,234,567", "1", "1")
    assert tables(window)["Rows loaded by day and table"] == [["2001-01-01", "transactions", "1", "1,234,567", "1"]]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("from=2018-06-04&to=2018-06-19", "No transaction fits these filters: choose more days, or take away a filter."),
        ("from=2018-06-19&to=2018-06-04", "the days go from 2018-06-19 to 2018-06-04: choose a first day that is not after the last one"),
    ],
)
def test_filters_that_nothing_fits_are_told_in_a_sentence(served: str, built: None, window: Chrome, query: str, sentence: str) -> None:
    opened(window, f"{served}/?{query}")
    assert alerts_of(window) == [sentence]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 101), ({"Host": "elsewhere.example"}, 403), ({"Origin": "http://elsewhere.example"}, 403)],
)
def test_pages_of_other_hosts_cannot_use_it(served: str, headers: dict[str, str], status: int) -> None:
    asked = http.client.HTTPConnection(urlsplit(served).netloc, timeout=10)
    handshake = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    asked.request("GET", "/_stcore/stream", headers=handshake | headers)
    assert asked.getresponse().status == status


def test_files_are_not_taken(served: str) -> None:
    asked = http.client.HTTPConnection(urlsplit(served).netloc, timeout=10)
    asked.request("PUT", "/_stcore/upload_file/a/b", body=b"x", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert asked.getresponse().status == 403
