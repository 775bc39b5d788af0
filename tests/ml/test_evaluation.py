"""The evaluation protocol on literal rows, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ml.evaluation import (
    DAY_MICROSECONDS,
    NoFraudError,
    Quality,
    Week,
    average_precision,
    daily_card_precision,
    mean_quality,
    precision_recall,
    quality,
    roc_auc,
    split,
)


def split_days(rows: list[tuple[int, int, bool]], week: Week) -> tuple[list[int], list[int]]:
    """Split rows of (day, card, is fraud), a second into their day; positions of training and test rows."""
    day, card, is_fraud = (np.array(column) for column in zip(*rows, strict=True))
    result = split(day * DAY_MICROSECONDS + 1_000_000, card, is_fraud.astype(bool), week)
    return result.train.tolist(), result.test.tolist()


def test_week_of_the_handbook():
    week = Week.of("2018-08-08")
    first = np.datetime64("1970-01-01", "D")
    assert [str(first + day) for day in (week.train_from, week.train_to, week.test_to)] == [
        "2018-07-25",
        "2018-08-01",
        "2018-08-15",
    ]
    assert [str(near) for near in week.around()] == ["2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15", "2018-08-22"]


def test_split_leaves_out_the_days_whose_labels_have_not_arrived():
    rows = [(day, day, False) for day in range(99, 125)]
    train, test = split_days(rows, Week(test_from=115))
    assert [rows[row][0] for row in train] == list(range(101, 108))
    assert [rows[row][0] for row in test] == list(range(115, 122))


def test_card_with_a_fraud_in_training_is_not_tested():
    rows = [(101, 1, True), (115, 1, True), (115, 2, False), (100, 3, True), (116, 3, False)]
    assert split_days(rows, Week(test_from=115))[1] == [2, 4]  # card 3's fraud is older than the training days


def test_card_is_dropped_once_the_label_of_its_fraud_has_arrived():
    # The last training day is 107. Test day d drops frauds of days 107 to 107 + d.
    rows = [(108, 1, True), (115, 1, False), (116, 1, False), (113, 2, True), (120, 2, False), (121, 2, False)]
    assert split_days(rows, Week(test_from=115))[1] == [1, 4]


def test_fraud_in_the_test_week_does_not_drop_its_card():
    rows = [(115, 1, True), (121, 1, False)]
    assert split_days(rows, Week(test_from=115))[1] == [0, 1]


def test_card_precision_is_the_share_of_compromised_cards_among_the_highest():
    day = np.zeros(4, np.int64)
    card = np.array([1, 2, 2, 3])
    is_fraud = np.array([False, True, False, True])
    score = np.array([0.9, 0.1, 0.8, 0.2])
    # Card 2 is chosen for its highest transaction, and compromised by another one.
    assert daily_card_precision(day, card, is_fraud, score, top=2).tolist() == [0.5]


def test_caught_card_leaves_the_following_days():
    day = np.array([0, 1, 1, 2])
    card = np.array([1, 1, 2, 1])
    is_fraud = np.array([True, True, True, True])
    score = np.array([0.9, 0.9, 0.1, 0.9])
    assert daily_card_precision(day, card, is_fraud, score, top=1).tolist() == [1.0, 1.0, 0.0]


def test_card_not_caught_stays():
    day = np.array([0, 0, 1])
    card = np.array([1, 2, 1])
    is_fraud = np.array([True, False, True])
    score = np.array([0.1, 0.9, 0.5])
    assert daily_card_precision(day, card, is_fraud, score, top=1).tolist() == [0.0, 1.0]


def test_quality_of_a_perfect_model_is_the_best_possible():
    at = np.array([0, 1, 2, DAY_MICROSECONDS], np.int64)
    is_fraud = np.array([True, False, False, True])
    got = quality(at, np.arange(4), is_fraud, is_fraud.astype(float))
    assert got == Quality(1.0, 1.0, 0.01, 0.01)
    assert got.card_precision_share == 1.0


def test_mean_of_weeks():
    got = mean_quality([Quality(0.8, 0.6, 0.2, 0.4), Quality(0.9, 0.8, 0.4, 0.4)])
    assert (got.roc_auc, got.average_precision, got.card_precision_share) == pytest.approx((0.85, 0.7, 0.75))


def test_precision_and_recall_at_each_distinct_score():
    precision, recall, threshold = precision_recall(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
    assert threshold.tolist() == [0.9, 0.5, 0.1]
    assert recall.tolist() == [0.5, 1.0, 1.0]
    assert precision.tolist() == [1.0, 2 / 3, 0.5]


def test_rows_without_fraud_are_refused_by_name():
    with pytest.raises(NoFraudError, match="got 0 and 2"):
        roc_auc(np.zeros(2, bool), np.zeros(2))
    with pytest.raises(NoFraudError, match="at least one fraud"):
        average_precision(np.zeros(2, bool), np.zeros(2))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_measures_equal_those_of_scikit_learn(rows: list[tuple[bool, int]]):
    is_fraud, score = np.array([row[0] for row in rows]), np.array([row[1] / 5 for row in rows])
    if is_fraud.all() or not is_fraud.any():
        return
    assert roc_auc(is_fraud, score) == pytest.approx(roc_auc_score(is_fraud, score))
    assert average_precision(is_fraud, score) == pytest.approx(average_precision_score(is_fraud, score))
