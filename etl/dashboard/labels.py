"""How columns of the marts are called, explained and written; what they mean stands in hive/mart/models/marts.yml only."""

from __future__ import annotations

import datetime as dt
import functools
import re
from decimal import Decimal
from typing import Any

import yaml

from etl.settings import ROOT

MARTS = ROOT / "hive" / "mart" / "models" / "marts.yml"
NONE = "–"
NAMES = {
    "transacted_on": "Day",
    "checked_on": "Day",
    "week_on": "Week of",
    "transacted_hour": "Hour (UTC)",
    "transacted_at": "Transacted at (UTC)",
    "caught_amount": "Money caught",
    "missed_amount": "Money missed",
    "roc_auc": "ROC AUC",
    "card_precision": "Card precision at 100",
    "table_name": "Table",
    "check_name": "Check",
    "column_name": "Column",
    "transaction_id": "Transaction",
    "customer_id": "Customer",
    "terminal_id": "Terminal",
    "checked_at": "Checked at (UTC)",
    "last_rejected_at": "Last rejected at (UTC)",
}
"""Names that are not those of the columns, written as words."""
SHARES = ("precision", "recall", "f1", "card_precision", "fraud_share", "caught_share", "labelled_fraud_share", "predicted_fraud_share")


def label(name: str) -> str:
    """Return a column's name for people."""
    return NAMES.get(name) or re.sub(r"\b(\d+)d\b", r"(\1 days)", name.replace("_", " ")).capitalize()


@functools.cache
def _descriptions() -> dict[str, dict[str, str]]:
    models = yaml.safe_load(MARTS.read_text(encoding="utf-8"))["models"]
    return {model["name"]: {column["name"]: column["description"] for column in model["columns"]} for model in models}


def meaning(model: str, column: str) -> str:
    """Return what a column of a mart means, as its description there says."""
    return _descriptions()[model][column]


def number(value: Any) -> str:
    """Write a number with thousands separators: whole ones as they are, others with three digits."""
    if value is None:
        return NONE
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def money(value: Decimal | int | None) -> str:
    """Write an amount with thousands separators and two digits."""
    return NONE if value is None else f"{value:,.2f}"


def share(value: Any) -> str:
    """Write a share as a percentage with one digit, never broken at its sign."""
    return NONE if value is None else f"{100 * float(value):,.1f}\u00a0%"


def ratio(part: Any, whole: Any) -> float | None:
    """Return a share of sums; None where there is nothing to share."""
    return float(part) / float(whole) if whole else None


def written(name: str, value: Any) -> str:
    """Write a column's value as it is shown in tables."""
    match value:
        case None:
            return NONE
        case _ if name in SHARES:
            return share(value)
        case bool():
            return "yes" if value else "no"
        case Decimal():
            return money(value)
        case int() | float() if not name.endswith(("_id", "_version", "weekday", "_hour")):
            return number(value)
        case dt.datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def plain(text: str) -> str:
    """Escape text of the data for places where Streamlit reads Markdown: a merchant's name is no link and no picture."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
