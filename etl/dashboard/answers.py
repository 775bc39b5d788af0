"""What the readers server answers, kept for some seconds; its errors in words that say which verb to run."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import streamlit as st

from etl.errors import WarehouseError
from etl.settings import settings
from etl.sql_server import StatementError, session

KEPT_SECONDS = 30
KEPT_ANSWERS = 128
"""Answers in memory, of all readers together; each is bounded (etl/dashboard/statements.py)."""
OUTDATED = ("TABLE_OR_VIEW_NOT_FOUND", "SCHEMA_NOT_FOUND", "UNRESOLVED_COLUMN", "cannot be found")
"""Words of Spark for a table or column that is not there."""


class MartsError(WarehouseError):
    """A mart is missing, or lacks a column."""


@st.cache_data(ttl=KEPT_SECONDS, max_entries=KEPT_ANSWERS, show_spinner="Asking the warehouse")
def ask(statement: str) -> pd.DataFrame:
    """Run a statement on the readers server.

    Parameters
    ----------
    statement
        One statement of HiveQL; it is the key under which the answer is kept.

    Returns
    -------
    pandas.DataFrame
        Python's own values: decimals stay decimals, columns that end in `_on` are dates, NULL is None.

    Raises
    ------
    MartsError
        When a mart is missing, or lacks a column.
    UnavailableError
        When the server does not answer.
    StatementError
        When it refuses the statement.
    """
    try:
        with session("readers", user=settings().hdfs_readers_user) as hive:
            columns, rows = hive.query(statement)
    except StatementError as error:
        if any(word in str(error) for word in OUTDATED):
            raise MartsError(
                f"the marts are not made yet, or by older code: run bash/marts.sh, then load this page again (the server said: {error})"
            ) from error
        raise
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    for name in columns:
        if name.endswith("_on"):
            frame[name] = pd.Series([dt.date.fromisoformat(str(day)) if day is not None else None for day in frame[name]], dtype=object)
    return frame
