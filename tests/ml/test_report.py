"""The report: one page that needs no network, whose charts name their units."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml import report
from ml.datasets import Rows
from ml.evaluation import DAY_MICROSECONDS, Quality, Week, quality
from ml.models import Linear, Model
from ml.registry import Version

FEATURES = ("amount", "amount_to_customer_mean")
CHAMPION = Version(
    "card_fraud",
    3,
    "file:///nowhere",
    "run",
    {"model": "xgboost", "features": json.dumps(FEATURES), "train_from": "2018-09-03", "train_to": "2018-09-10"},
)
WEEK = (dt.date(2018, 9, 17), dt.date(2018, 9, 23))
AS_OF = dt.datetime(2018, 9, 30, 23, 59, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """A week of 700 transactions of 50 customers; of the large amounts most are fraud."""
    random = np.random.default_rng(5)
    count = 700
    amount = random.choice([12.0, 48.0, 320.0], count, p=[0.5, 0.4, 0.1])
    return Rows(
        transaction_id=np.arange(count),
        customer_id=random.integers(1, 51, count),
        terminal_id=random.integers(1, 10, count),
        transacted_at=Week.of("2018-09-17").test_from * DAY_MICROSECONDS + np.arange(count) * (7 * DAY_MICROSECONDS // count),
        amount=amount,
        is_fraud=(amount > 300) & (random.random(count) < 0.8),
        columns={"amount": amount, "amount_to_customer_mean": amount / 30},
    )


@pytest.fixture(scope="module")
def score(rows: Rows) -> np.ndarray:
    return np.where(rows.amount > 300, 0.8, 0.01)


@pytest.fixture(scope="module")
def reached(rows: Rows, score: np.ndarray) -> Quality:
    return quality(rows.transacted_at, rows.customer_id, rows.is_fraud, score)


def texts(chart: report.Chart) -> list[str]:
    """What stands in a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)


def a_sum(transactions: int, frauds: int, alarms: int, **key: Any) -> dict[str, Any]:
    return {"transactions": transactions, "frauds": frauds, "alarms": alarms, **key}


def by_day(count: int) -> list[dict[str, Any]]:
    return [a_sum(100, 3, 2, day=dt.date(2018, 9, 1) + dt.timedelta(days=number)) for number in range(count)]


def test_the_headline_tells_alarms_a_day_and_the_money_they_would_have_found(rows: Rows, score: np.ndarray, reached: Quality):
    told = {figure.meaning: figure.value for figure in report._headline(rows, score, reached, "EUR")}
    alarms, frauds = int((rows.amount > 300).sum()), int(rows.is_fraud.sum())
    assert told[f"alarms a day; {frauds / alarms:.0%} of them fraud"] == f"{alarms / 7:.0f}"
    assert told[f"of {frauds} frauds found by alarms"] == "100%"
    assert told[f"of the {320 * frauds:,} EUR of fraud found by alarms"] == "100%"


def test_amounts_of_several_currencies_name_none(rows: Rows, score: np.ndarray, reached: Quality):
    assert report._headline(rows, score, reached, "")[-1].meaning == f"of the {320 * rows.is_fraud.sum():,} of fraud found by alarms"
    assert "amount from … up to the next, units of its currency" in texts(report._by_amount([a_sum(9, 1, 1, **{"class": 0})], ""))


def test_a_model_that_raises_no_alarm_is_reported_on(rows: Rows):
    low = np.full(len(rows), 0.01)
    reached = quality(rows.transacted_at, rows.customer_id, rows.is_fraud, low)
    assert [figure.value for figure in report._headline(rows, low, reached, "EUR")][2:] == ["0", "0%", "0%"]
    assert "No transaction reaches the threshold 0.5." in report._precision_recall(rows, low).says
    assert "champion" in texts(report._calibration(rows, low))


def test_precision_and_recall_mark_the_threshold_of_the_alarms(rows: Rows, score: np.ndarray):
    chart = report._precision_recall(rows, score)
    assert {"threshold 0.5", "frauds found (recall)", "alarms that are fraud (precision)", "100%"} <= set(texts(chart))
    assert f"{rows.is_fraud.sum() / (rows.amount > 300).sum():.0%} of alarms are fraud and 100% of frauds are found" in chart.says


def test_card_precision_counts_cards_of_each_day(rows: Rows, score: np.ndarray, reached: Quality):
    told = texts(report._card_precision(rows, score, reached))
    assert {"compromised of 100 cards", "17 Sep", "23 Sep", "champion", "best possible"} <= set(told)


def test_importance_names_the_features_that_move_the_probability_strongest_first(rows: Rows):
    model = Model(FEATURES, (Linear(np.array([0.01, 0.001]), -3.0, np.array([50.0, 2.0])),))
    score = np.linspace(0, 1, len(rows))
    told = texts(report._importance(model, rows, score))
    # Matplotlib writes a barh's labels from below.
    assert [text for text in told if text in ("amount", "amount to customer mean")] == ["amount to customer mean", "amount"]
    assert "points of probability" in told


@pytest.mark.parametrize("days", [1, 30])
def test_days_whose_labels_are_to_come_are_marked(days: int):
    chart = report._by_day(by_day(days), AS_OF)
    assert ("labels to come" in texts(chart)) is (days == 30)
    assert chart.says.startswith(f"{3 * days} known frauds and {2 * days} transactions called fraud, 2018-09-01 to ")


def test_amounts_tell_the_riskiest_class_and_the_one_with_most_frauds():
    sums = [a_sum(1000, 30, 5, **{"class": 0}), a_sum(10, 9, 9, **{"class": 8})]
    chart = report._by_amount(sums, "EUR")
    assert chart.says == ("Riskiest from 500 EUR: 90.0% of 10 transactions are known fraud. Most frauds from 0 to 10 EUR: 30 of 39.")
    assert {"0", "500", "amount from … up to the next, EUR"} <= set(texts(chart))


def test_the_page_is_whole_without_a_network_and_takes_the_readers_colours(rows: Rows, score: np.ndarray, reached: Quality, tmp_path: Path):
    charts = [
        report._precision_recall(rows, score),
        report._by_day(by_day(30), AS_OF),
        report._by_terminal([a_sum(9, 3, 2, terminal_id=7)]),
    ]
    risky = {
        "transaction_id": 12,
        "transacted_at": "2018-09-30 18:29",
        "customer_id": 3,
        "terminal_id": 7,
        "amount": "358.20",
        "fraud_probability": 0.9996,
        "risk_level": "HIGH",
        "reasons": [{"feature": "amount", "contribution": 0.27}, {"feature": "<b>", "contribution": -0.1}],
    }
    page = report.Page(
        CHAMPION, AS_OF, WEEK, len(rows), int(rows.is_fraud.sum()), "EUR", report._headline(rows, score, reached, "EUR"), charts, [risky]
    )
    path = tmp_path / "report" / "index.html"
    report.write(path, page)
    text = path.read_text()
    assert [found.name for found in path.parent.iterdir()] == ["index.html"]
    # Addresses are names of namespaces only: nothing is fetched.
    assert set(re.findall(r'[\w:-]+="https?://[^"]*"', text)) <= {
        'xmlns="http://www.w3.org/2000/svg"',
        'xmlns:xlink="http://www.w3.org/1999/xlink"',
    }
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\(\s*['\"]?http", text)
    assert report.INK not in text
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert "trained on 2018-09-03 to 2018-09-09," in text
    assert '<th class="number">amount, EUR</th>' in text
    assert "&lt;b&gt; (-0.10)" in text


def test_the_same_rows_draw_the_same_picture(rows: Rows, score: np.ndarray):
    assert report._precision_recall(rows, score) == report._precision_recall(rows, score)
