"""How good a model is, measured as the Fraud Detection Handbook does: time-ordered weeks, card precision.

Source: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection -
Practical Handbook", chapters "Baseline fraud detection system" and "Card precision top-k".

A week: train on 7 days, leave out the 7 days whose labels have not arrived, test on the next 7. On each test day the
transactions of cards are dropped that are known as compromised by then: a fraud in the training days, or on a later
day whose labels have arrived, counted from the last training day as the Handbook does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etl.errors import RefusedError

DAY_MICROSECONDS = 86_400_000_000

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

TOP_CARDS = 100
"""Cards that investigators can check in a day."""


def date_of(day: int) -> dt.date:
    """Return the date of a day counted from 1970-01-01 (UTC)."""
    return dt.date(1970, 1, 1) + dt.timedelta(days=int(day))


class NoFraudError(RefusedError):
    """A measure that needs both frauds and other transactions was asked of rows that have only one of them."""


@dataclass(frozen=True)
class Week:
    """A training window, the delay of the labels, and the test window after it; days since 1970-01-01 (UTC)."""

    test_from: int
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    @classmethod
    def of(cls, test_from: str, train_days: int = 7, delay_days: int = 7, test_days: int = 7) -> Week:
        """The week whose test begins on a date written as YYYY-MM-DD."""
        day = int(np.datetime64(test_from, "D").astype(np.int64))
        return cls(day, train_days, delay_days, test_days)

    @property
    def train_from(self) -> int:
        """First training day."""
        return self.test_from - self.delay_days - self.train_days

    @property
    def train_to(self) -> int:
        """The day after the last training day."""
        return self.test_from - self.delay_days

    @property
    def test_to(self) -> int:
        """The day after the last test day."""
        return self.test_from + self.test_days

    def shifted(self, days: int) -> Week:
        """The same protocol so many days later."""
        return Week(self.test_from + days, self.train_days, self.delay_days, self.test_days)

    def around(self, shifts: Iterable[int] = (-14, -7, 0, 7, 14)) -> list[Week]:
        """This week and its neighbours: one week's average precision varies by .03, a mean of five by half of it."""
        return [self.shifted(days) for days in shifts]

    def __str__(self) -> str:
        return str(date_of(self.test_from))


@dataclass(frozen=True)
class Split:
    """Row positions of a week: what to train on, and what to test on after known compromised cards are dropped."""

    week: Week
    train: Ints
    test: Ints


@dataclass(frozen=True)
class Quality:
    """What a model reached in one test week, or the mean over several.

    Attributes
    ----------
    roc_auc, average_precision
        Over the test rows.
    card_precision
        CP@100: mean over the test days.
    best_card_precision
        CP@100 of a model that knows the labels; below 1 because few cards a day are compromised.
    """

    roc_auc: float
    average_precision: float
    card_precision: float
    best_card_precision: float

    @property
    def card_precision_share(self) -> float:
        """CP@100 as a share of the best possible; 0 if nothing could be caught."""
        return self.card_precision / self.best_card_precision if self.best_card_precision else 0.0


def split(transacted_at: Ints, customer_id: npt.NDArray[Any], is_fraud: Bools, week: Week) -> Split:
    """Rows to train and to test on.

    Parameters
    ----------
    transacted_at
        Microseconds since 1970 UTC, shape (rows,), in any order.
    customer_id, is_fraud
        Shape (rows,).
    week
        Which days.
    """
    day = transacted_at // DAY_MICROSECONDS
    train = np.flatnonzero((day >= week.train_from) & (day < week.train_to))
    test = np.flatnonzero((day >= week.test_from) & (day < week.test_to))
    # For each card the first day of the test window on which it is known: at once for a fraud in the training days
    # or the last of them, a day later for each later day of the fraud.
    frauds = np.flatnonzero(is_fraud & (day >= week.train_from) & (day < week.train_to + week.test_days - 1))
    known_on = np.maximum(day[frauds], week.train_to - 1) + week.delay_days + 1
    cards, card = np.unique(np.concatenate((customer_id[frauds], customer_id[test])), return_inverse=True)
    first_known = np.full(len(cards), np.iinfo(np.int64).max)
    np.minimum.at(first_known, card[: len(frauds)], known_on)
    return Split(week, train, test[day[test] < first_known[card[len(frauds) :]]])


def roc_auc(is_fraud: Bools, score: Floats) -> float:
    """Area under the ROC curve: how often a fraud scores above another transaction, ties as half."""
    order = np.argsort(score, kind="stable")
    _, group, size = np.unique(score[order], return_inverse=True, return_counts=True)
    last_rank = np.cumsum(size)
    rank = (last_rank - (size - 1) / 2)[group]
    frauds = int(is_fraud.sum())
    others = len(is_fraud) - frauds
    if not frauds or not others:
        raise NoFraudError(f"ROC AUC needs frauds and others, got {frauds} and {others}: choose another test week.")
    return float((rank[is_fraud[order]].sum() - frauds * (frauds + 1) / 2) / (frauds * others))


def precision_recall(is_fraud: Bools, score: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision and recall at each distinct score, from the highest down.

    Returns
    -------
    precision, recall, threshold
        Shape (distinct scores,).
    """
    order = np.argsort(-score, kind="stable")
    descending = score[order]
    last_of_tie = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
    hits = np.cumsum(is_fraud[order])[last_of_tie]
    if not len(hits) or not hits[-1]:
        raise NoFraudError("Precision and recall need at least one fraud: choose another test week.")
    return hits / (last_of_tie + 1), hits / hits[-1], descending[last_of_tie]


def average_precision(is_fraud: Bools, score: Floats) -> float:
    """Mean precision over the recall gained at each distinct score, as scikit-learn's `average_precision_score`."""
    precision, recall, _ = precision_recall(is_fraud, score)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def daily_card_precision(day: Ints, customer_id: npt.NDArray[Any], is_fraud: Bools, score: Floats, top: int = TOP_CARDS) -> Floats:
    """Card precision of each day that has rows: the share of compromised cards among the `top` highest.

    A card's score is its highest of the day; it is compromised if any of its transactions that day is fraud. A card
    caught leaves the following days. Equal scores go by card number.
    """
    caught = np.empty(0, customer_id.dtype)
    precision = []
    for today in np.unique(day):
        rows = np.flatnonzero((day == today) & ~np.isin(customer_id, caught))
        cards, card = np.unique(customer_id[rows], return_inverse=True)
        highest = np.full(len(cards), -np.inf)
        np.maximum.at(highest, card, score[rows])
        compromised = np.zeros(len(cards), np.bool_)
        np.logical_or.at(compromised, card, is_fraud[rows])
        chosen = np.argsort(-highest, kind="stable")[:top]
        found = cards[chosen[compromised[chosen]]]
        precision.append(len(found) / top)
        caught = np.concatenate((caught, found))
    return np.array(precision)


def quality(transacted_at: Ints, customer_id: npt.NDArray[Any], is_fraud: Bools, score: Floats) -> Quality:
    """All measures over test rows.

    Parameters
    ----------
    transacted_at
        Microseconds since 1970 UTC, shape (rows,).
    customer_id, is_fraud
        Shape (rows,).
    score
        Higher is more suspicious; any scale, shape (rows,).
    """
    day = transacted_at // DAY_MICROSECONDS
    ideal = is_fraud.astype(np.float64)
    return Quality(
        roc_auc(is_fraud, score),
        average_precision(is_fraud, score),
        float(daily_card_precision(day, customer_id, is_fraud, score).mean()),
        float(daily_card_precision(day, customer_id, is_fraud, ideal).mean()),
    )


def mean_quality(weeks: Iterable[Quality]) -> Quality:
    """Mean of each measure over test weeks."""
    rows = np.array([(week.roc_auc, week.average_precision, week.card_precision, week.best_card_precision) for week in weeks])
    return Quality(*(float(value) for value in rows.mean(axis=0)))
