"""The statements of the dashboard: filters become WHERE clauses, so that rows stay on the server and answers are small.

Each answer is bounded: grouped by days and a handful of values, or cut by a LIMIT that the page names.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from etl.sql_server import literal

DIMENSIONS = ("country", "channel", "device", "category")
COUNTS = ("transactions", "scored_transactions", "frauds", "predicted_frauds", "caught_frauds", "missed_frauds", "unconfirmed_alarms")
AMOUNTS = ("amount", "fraud_amount", "predicted_fraud_amount", "caught_amount", "missed_amount")
OUTCOMES = {
    "All": "",
    "Fraud": "is_fraud",
    "Predicted fraud": "is_predicted_fraud",
    "Caught fraud": "is_fraud AND is_predicted_fraud",
    "Missed fraud": "is_fraud AND NOT coalesce(is_predicted_fraud, false)",
    "Unconfirmed alarm": "is_predicted_fraud AND NOT coalesce(is_fraud, false)",
    "Not scored": "is_predicted_fraud IS NULL",
}
"""What a transaction turned out to be, and how the mart says it; terms as in fraud_daily."""
ORDERS = {
    "newest": "transacted_at DESC, transaction_id DESC",
    "most suspicious": "fraud_probability DESC NULLS LAST, transaction_id DESC",
    "largest": "amount DESC, transaction_id DESC",
}
ROW_COLUMNS = (
    "transaction_id", "transacted_at", "amount", "currency", "fraud_probability", "risk_level", "is_predicted_fraud", "is_fraud",
    "scenario", "channel", "device", "country", "category", "customer_id", "customer_country", "terminal_id", "model_version", "lane",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    model_name: str
    model_version: int
    is_champion: bool = False

    def __str__(self) -> str:
        return f"{self.model_name} {self.model_version}{', champion' if self.is_champion else ''}"

    @property
    def condition(self) -> str:
        """The rows of this version."""
        return f"model_name = {literal(self.model_name)} AND model_version = {self.model_version:d}"


@dataclass(frozen=True)
class Filters:
    """What a reader looks at: days (both included), one currency, and values of the dimensions; none chosen means all."""

    first_on: dt.date
    last_on: dt.date
    currency: str
    country: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    category: tuple[str, ...] = ()

    @property
    def days(self) -> str:
        """Condition of the days alone."""
        return between("transacted_on", self.first_on, self.last_on)

    @property
    def condition(self) -> str:
        """Condition of all of it."""
        chosen = [among(name, getattr(self, name)) for name in DIMENSIONS]
        return both(self.days, f"currency = {literal(self.currency)}", *chosen)


@dataclass(frozen=True)
class Rows:
    """Which transactions the page of raw data shows, beside the shared filters."""

    version: Version | None = None
    risk_level: tuple[str, ...] = ()
    outcome: str = "All"
    transaction_id: int | None = None
    customer_id: int | None = None
    terminal_id: int | None = None

    @property
    def condition(self) -> str:
        """Condition of these alone; empty where nothing is chosen."""
        keys = {name: getattr(self, name) for name in ("transaction_id", "customer_id", "terminal_id")}
        return both(
            self.version.condition if self.version else "",
            among("risk_level", self.risk_level),
            f"({OUTCOMES[self.outcome]})" if OUTCOMES[self.outcome] else "",
            *(f"{name} = {value:d}" for name, value in keys.items() if value is not None),
        )


def both(*conditions: str) -> str:
    """Join the conditions that are not empty."""
    return " AND ".join(condition for condition in conditions if condition)


def among(column: str, values: Iterable[str]) -> str:
    """Return the condition that a column has one of these values; empty where none is given."""
    listed = ", ".join(literal(value) for value in values)
    return f"{column} IN ({listed})" if listed else ""


def between(column: str, first_on: dt.date, last_on: dt.date) -> str:
    """Return the condition that a date lies in a range, both ends included."""
    return f"{column} BETWEEN {_date(first_on)} AND {_date(last_on)}"


def _date(day: dt.date) -> str:
    return f"DATE {literal(day.isoformat())}"


def _sums(names: Iterable[str]) -> str:
    return ", ".join(f"sum({name}) AS {name}" for name in names)


# --- what can be chosen -----------------------------------------------------------------------------------------------


def choices() -> str:
    """Return the statement for what can be chosen: by currency its days and the values of each dimension."""
    values = ", ".join(f"sort_array(collect_set({name})) AS {name}" for name in DIMENSIONS)
    return (
        f"SELECT currency, min(transacted_on) AS first_on, max(transacted_on) AS last_on, {values} "
        "FROM mart.fraud_daily GROUP BY currency ORDER BY sum(transactions) DESC, currency"
    )


def versions() -> str:
    """Return the statement for the model versions, the champion first."""
    return (
        "SELECT model_name, model_version, algorithm, train_from, train_to, average_precision, is_champion "
        "FROM ops.model_versions ORDER BY is_champion DESC, registered_at DESC, model_version DESC LIMIT 200"
    )


# --- predicted fraud --------------------------------------------------------------------------------------------------


def daily(chosen: Filters) -> str:
    """Return the statement for volume and value by day."""
    return (
        f"SELECT transacted_on, {_sums((*COUNTS, *AMOUNTS))} FROM mart.fraud_daily WHERE {chosen.condition} "
        "GROUP BY transacted_on ORDER BY transacted_on"
    )


def champion_quality(chosen: Filters) -> str:
    """Return the statement for how good the champion's decisions were, on labelled days after its training."""
    return (
        f"SELECT max(p.model_version) AS model_version, {_sums(('frauds', 'predicted_frauds', 'caught_frauds'))} "
        "FROM mart.model_performance AS p INNER JOIN ops.model_versions AS v USING (model_name, model_version) "
        f"WHERE v.is_champion AND p.is_after_training AND {chosen.days}"
    )


def riskiest_terminals(chosen: Filters, limit: int) -> str:
    """Return the statement for the riskiest terminals as they stand now; currency and days do not apply."""
    where = both(among("country", chosen.country), among("category", chosen.category)) or "true"
    return (
        "SELECT risk_rank, terminal_id, terminal_name, labelled_frauds, predicted_frauds_30d, mean_probability_30d, transactions_30d, "
        "labelled_fraud_share, country, category, customers_30d, labelled_transactions "
        f"FROM mart.terminal_risk WHERE {where} ORDER BY risk_rank LIMIT {limit:d}"
    )


def suspicious_customers(chosen: Filters, limit: int) -> str:
    """Return the statement for customers with the most predicted frauds lately; days and dimensions do not apply."""
    return (
        "SELECT customer_id, predicted_frauds_30d, frauds_30d, transactions_30d, amount_30d, largest_amount_30d, abroad_30d, at_night_30d, "
        "card_not_present_30d, customer_country FROM mart.customer_activity "
        f"WHERE currency = {literal(chosen.currency)} AND predicted_frauds_30d > 0 "
        f"ORDER BY predicted_frauds_30d DESC, frauds_30d DESC, customer_id LIMIT {limit:d}"
    )


# --- pattern analysis -------------------------------------------------------------------------------------------------


def patterns(chosen: Filters) -> str:
    """Return the statement for volume and value by each value of each dimension, in one pass."""
    which = " ".join(f"WHEN grouping({name}) = 0 THEN '{name}'" for name in DIMENSIONS)
    sets = ", ".join(f"({name})" for name in DIMENSIONS)
    return (
        f"SELECT CASE {which} END AS dimension, coalesce({', '.join(DIMENSIONS)}) AS value, {_sums((*COUNTS, *AMOUNTS))} "
        f"FROM mart.fraud_daily WHERE {chosen.condition} GROUP BY GROUPING SETS ({sets}) ORDER BY dimension, value"
    )


def hours(chosen: Filters) -> str:
    """Return the statement for volume and value by weekday (0 is Monday) and hour."""
    return (
        f"SELECT weekday(transacted_on) AS weekday, transacted_hour, {_sums((*COUNTS, *AMOUNTS))} "
        f"FROM mart.fraud_hourly WHERE {chosen.condition} GROUP BY weekday, transacted_hour ORDER BY weekday, transacted_hour"
    )


# --- model performance and feature insight ----------------------------------------------------------------------------


def _after_training(is_after_training: bool) -> str:
    return "is_after_training" if is_after_training else ""


def performance(chosen: Filters, version: Version, is_after_training: bool) -> str:
    """Return the statement for a version's quality by day."""
    return (
        "SELECT transacted_on, is_after_training, transactions, frauds, predicted_frauds, caught_frauds, missed_frauds, false_alarms, "
        "precision, recall, f1, roc_auc, card_precision FROM mart.model_performance "
        f"WHERE {both(chosen.days, version.condition, _after_training(is_after_training))} ORDER BY transacted_on"
    )


def compared(chosen: Filters, is_after_training: bool) -> str:
    """Return the statement for all versions over the same days; ratios are of the sums, areas and card precision means of days."""
    return (
        f"SELECT model_name, model_version, count(*) AS days, "
        f"{_sums(('transactions', 'frauds', 'predicted_frauds', 'caught_frauds', 'false_alarms'))}, "
        "sum(caught_frauds) / nullif(sum(predicted_frauds), 0) AS precision, sum(caught_frauds) / nullif(sum(frauds), 0) AS recall, "
        "2 * sum(caught_frauds) / nullif(sum(predicted_frauds) + sum(frauds), 0) AS f1, "
        "avg(roc_auc) AS roc_auc, avg(card_precision) AS card_precision FROM mart.model_performance "
        f"WHERE {both(chosen.days, _after_training(is_after_training))} GROUP BY model_name, model_version "
        "ORDER BY model_name, model_version DESC LIMIT 200"
    )


def features(chosen: Filters, version: Version, limit: int) -> str:
    """Return the statement for the features that raised probabilities most."""
    return (
        f"SELECT feature, {_sums(('contribution', 'transactions', 'first_reasons'))} FROM mart.feature_importance "
        f"WHERE {both(chosen.days, version.condition)} GROUP BY feature ORDER BY contribution DESC, feature LIMIT {limit:d}"
    )


def features_by_week(chosen: Filters, version: Version, names: Iterable[str]) -> str:
    """Return the statement for some features' contributions by week, which begins on Monday."""
    return (
        "SELECT cast(trunc(transacted_on, 'WEEK') AS date) AS week_on, feature, sum(contribution) AS contribution "
        f"FROM mart.feature_importance WHERE {both(chosen.days, version.condition, among('feature', names))} "
        "GROUP BY week_on, feature ORDER BY week_on, feature"
    )


# --- data quality -----------------------------------------------------------------------------------------------------


def checked_days() -> str:
    """Return the statement for the days of which there are records."""
    return "SELECT min(checked_on) AS first_on, max(checked_on) AS last_on FROM mart.data_quality_daily"


def quality(first_on: dt.date, last_on: dt.date) -> str:
    """Return the statement for what was loaded, rejected, reconciled and checked, by day and table."""
    return (
        "SELECT checked_on, table_name, batches, failed_batches, loaded_rows, rejected_rows, reconciled_parts, unequal_parts, checks, "
        f"failed_errors, failed_warnings FROM mart.data_quality_daily WHERE {between('checked_on', first_on, last_on)} "
        "ORDER BY checked_on, table_name"
    )


def failed_checks(first_on: dt.date, last_on: dt.date, limit: int) -> str:
    """Return the statement for checks that failed, the newest first."""
    return (
        "SELECT checked_at, table_name, check_name, severity, observed FROM ops.checks "
        f"WHERE NOT is_passed AND {between('cast(checked_at AS date)', first_on, last_on)} ORDER BY checked_at DESC LIMIT {limit:d}"
    )


def reject_reasons(first_on: dt.date, last_on: dt.date, limit: int) -> str:
    """Return the statement for why rows were rejected, the most frequent reason first."""
    return (
        "SELECT table_name, column_name, reason, count(*) AS rejected_rows, max(rejected_at) AS last_rejected_at FROM ops.rejects "
        f"WHERE {between('cast(rejected_at AS date)', first_on, last_on)} GROUP BY table_name, column_name, reason "
        f"ORDER BY rejected_rows DESC, table_name, reason LIMIT {limit:d}"
    )


# --- raw data ---------------------------------------------------------------------------------------------------------


def rows(chosen: Filters, further: Rows, order: Literal["newest", "most suspicious", "largest"], limit: int) -> str:
    """Return the statement for the first transactions in an order."""
    return (
        f"SELECT {', '.join(ROW_COLUMNS)} FROM mart.scored_transactions WHERE {both(chosen.condition, further.condition)} "
        f"ORDER BY {ORDERS[order]} LIMIT {limit:d}"
    )


def how_many(chosen: Filters, further: Rows) -> str:
    """Return the statement for how many transactions there are and what they come to."""
    return (
        "SELECT count(*) AS transactions, coalesce(sum(amount), 0) AS amount FROM mart.scored_transactions "
        f"WHERE {both(chosen.condition, further.condition)}"
    )
