"""The page of data quality: what was loaded, rejected, reconciled and checked."""

from __future__ import annotations

import streamlit as st

from etl.dashboard import charts, display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import meaning, number

TOP = 50
FIGURES = (
    "loaded_rows", "batches", "failed_batches", "rejected_rows", "reconciled_parts", "unequal_parts", "failed_errors", "failed_warnings",
)  # fmt: skip
EMPTY = "There is no record of a load yet: run bash/load.sh full, then bash/marts.sh."


def page() -> None:
    """Draw the page."""
    held = ask(statements.checked_days()).iloc[0]
    if held["first_on"] is None:
        st.info(EMPTY)
        return
    st.sidebar.header("Filters", anchor=False)
    first_on, last_on = filters.range_of_days(held["first_on"], held["last_on"], "checked_")
    days = ask(statements.quality(first_on, last_on))
    if days.empty:
        st.info("Nothing was loaded or checked on these days: choose others.")
        return
    failed = int(days["failed_errors"].sum() + days["unequal_parts"].sum() + days["failed_batches"].sum())
    if failed:
        st.error(
            f"Failed in these days, of checks of severity error, comparisons with the source and batches: {number(failed)}. See below, and "
            "docs/operations.md."
        )
    else:
        st.success("No check of severity error, no comparison with the source and no batch failed in these days.")
    display.tiles(*((display.titled(name, ""), number(int(days[name].sum())), meaning("data_quality_daily", name)) for name in FIGURES))
    loaded = days[days["loaded_rows"] > 0]
    if not loaded.empty:
        largest = loaded.groupby("table_name")["loaded_rows"].sum().sort_values(ascending=False)
        tables = [str(name) for name in largest.index[: len(charts.COLOURS)]]
        drawn = charts.series(loaded[loaded["table_name"].isin(tables)], "checked_on", "table_name", "loaded_rows", "Rows", tables)
        display.chart(
            "Rows loaded by day and table",
            "Lines of loaded rows by day for each table, on a logarithmic axis.",
            drawn.encode(charts.logarithmic("Rows loaded")),
            days,
            ("checked_on", "table_name", "batches", "loaded_rows", "rejected_rows"),
        )
    st.subheader("By day and table", anchor=False)
    display.rows(days, "What was loaded, rejected, reconciled and checked by day and table.")
    checks = statements.failed_checks(first_on, last_on, TOP)
    _listed("Failed checks", checks, "The newest", "Checks that failed and what they found.")
    reasons = statements.reject_reasons(first_on, last_on, TOP)
    _listed("Why rows were rejected", reasons, "The most frequent reasons", "Reasons of rejected rows and how many there were.")


def _listed(title: str, statement: str, which: str, says: str) -> None:
    """Draw a table that may be empty, and is cut at `TOP` rows."""
    st.subheader(title, anchor=False)
    found = ask(statement)
    if found.empty:
        st.caption("None in these days.")
    else:
        st.caption(f"{which}, {TOP} at most.")
        display.rows(found, says)
