"""Which week is trained on, and who becomes the champion."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from etl.errors import RefusedError
from ml import models
from ml.datasets import micros, newest_week, parsed_moment
from ml.evaluate import smote
from ml.evaluation import Quality
from ml.params import Windows
from ml.registry import Version
from ml.train import Candidate, decide

WINDOWS = Windows(train_days=7, delay_days=7, test_days=7)


def candidate(average_precision: float) -> Candidate:
    return Candidate("xgboost", {}, models.Model((), ()), Quality(0.9, average_precision, 0.3, 0.4), 1.0)


@pytest.mark.parametrize(
    ("as_of", "test_from"),
    [
        # The last second of a day is not its end: a transaction of that second seven days ago has no label yet.
        ("2018-09-30T23:59:57", "2018-09-16"),
        ("2018-09-30T23:59:59.999999", "2018-09-17"),
        ("2018-10-01", "2018-09-17"),
        ("2018-10-01T23:00:00", "2018-09-17"),
    ],
)
def test_the_newest_week_is_the_one_whose_labels_have_all_arrived(as_of: str, test_from: str):
    week = newest_week(parsed_moment(as_of), WINDOWS)
    assert str(week) == test_from
    assert (week.test_from - week.train_to, week.train_to - week.train_from, week.test_to - week.test_from) == (7, 7, 7)


def test_a_moment_is_utc_to_the_microsecond():
    assert micros(parsed_moment("2018-09-30T12:00:00.000001")) == 1_538_308_800_000_001
    assert parsed_moment("2018-09-30T14:00:00+02:00") == dt.datetime(2018, 9, 30, 12, tzinfo=dt.UTC)
    with pytest.raises(RefusedError, match="'yesterday' is no time"):
        parsed_moment("yesterday")


def test_the_first_model_becomes_the_champion():
    assert decide(candidate(0.1), None, None, "") == (
        True,
        "there was no champion; average precision 0.1000 on the newest labelled week",
    )


@pytest.mark.parametrize(("own", "theirs", "is_promoted"), [(0.75, 0.74, True), (0.74, 0.74, False), (0.73, 0.74, False)])
def test_only_a_better_model_replaces_the_champion_and_the_reason_is_given(own: float, theirs: float, is_promoted: bool):
    champion = Version("card_fraud", 4, "", "", {"model": "average"})
    promoted, why = decide(candidate(own), champion, Quality(0.9, theirs, 0.3, 0.4), "")
    assert promoted is is_promoted
    assert f"{own:.4f}" in why
    assert f"{theirs:.4f}" in why
    assert "card_fraud version 4 (average)" in why
    assert ("is not above" in why) is not is_promoted


def test_a_champion_that_cannot_score_is_replaced():
    promoted, why = decide(candidate(0.1), Version("card_fraud", 4, "", "", {}), None, "feature.transactions lacks its shoe_size")
    assert promoted
    assert "shoe_size" in why


def test_smote_makes_frauds_between_frauds_until_classes_are_equal():
    rows = np.array([[0, 0], [10, 0], [20, 10], *[[100 + number, 50] for number in range(20)]], np.float32)
    label = np.array([True] * 3 + [False] * 20)
    more, labels = smote(rows, label, seed=1)
    assert (labels.sum(), (~labels).sum()) == (20, 20)
    assert np.array_equal(more[:23], rows)
    made = more[23:]
    assert labels[23:].all()
    assert (made >= rows[:3].min(axis=0)).all()
    assert (made <= rows[:3].max(axis=0)).all()
    assert np.array_equal(smote(rows, label, seed=1)[0], more)


def test_smote_leaves_rows_alone_that_have_one_fraud_or_are_equal():
    rows = np.zeros((3, 2), np.float32)
    for label in ([True, False, False], [True, True, False]):
        assert smote(rows, np.array(label), seed=1)[0] is rows
