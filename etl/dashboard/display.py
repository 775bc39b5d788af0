"""What pages put on the screen: tiles, charts with their tables, tables, and sentences where there is nothing to show."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd
import streamlit as st

from etl.dashboard.labels import NONE, SHARES, label, plain, written

TILES_IN_A_ROW = 4
NOTHING = "No transaction fits these filters: choose more days, or take away a filter."


def tiles(*shown: tuple[str, str, str]) -> None:
    """Show figures: label, value as it is written, and what it means."""
    for start in range(0, len(shown), TILES_IN_A_ROW):
        row = shown[start : start + TILES_IN_A_ROW]
        for column, (name, value, meaning) in zip(st.columns(TILES_IN_A_ROW), row, strict=False):
            column.metric(name, value, help=meaning, border=True)


def table(frame: pd.DataFrame, names: Sequence[str], currency: str = "") -> None:
    """Show columns as a plain table, which keyboards and screen readers read like any other."""
    texts = {
        titled(name, currency if name.endswith("amount") else ""): [plain(written(name, value)) for value in frame[name]] for name in names
    }
    numeric: list[Hashable] = [titled(name, currency if name.endswith("amount") else "") for name in names if is_numeric(frame[name])]
    # Streamlit aligns each text to the left, in the cell itself.
    styled = pd.DataFrame(texts).style.set_properties(subset=numeric, **{"text-align": "right !important"}).hide(axis="index")
    st.table(styled, hide_index=True)


def is_numeric(values: pd.Series) -> bool:
    """Tell whether a column of Python's values holds numbers."""
    return not any(isinstance(value, (str, bool)) for value in values) and pd.api.types.is_number(next(iter(values.dropna()), ""))


def titled(name: str, currency: str) -> str:
    """Return a column's name, with the currency where it is an amount."""
    return f"{label(name)}, {plain(currency)}" if currency else label(name)


def chart(title: str, says: str, drawn: alt.Chart, frame: pd.DataFrame, names: Sequence[str], currency: str = "") -> None:
    """Show a chart below its title, and the same as a table.

    Parameters
    ----------
    title
        What it shows.
    says
        The same in a sentence, for who does not see it.
    drawn
        The chart.
    frame, names
        The table's rows and columns.
    currency
        Of the amounts in it.
    """
    st.subheader(title, anchor=False)
    st.altair_chart(drawn, width="stretch", alt=f"{says} The same as a table follows.")
    with st.expander(f"Table: {title}"):
        table(frame, names, currency)


def rows(frame: pd.DataFrame, says: str, currency: str = "", height: int | Literal["auto"] = "auto") -> None:
    """Show rows in a grid that can be sorted and searched; its texts are no Markdown."""
    columns = {name: _column(name, frame[name], currency) for name in frame.columns}
    st.dataframe(frame.map(_yes_or_no), height=height, hide_index=True, column_config=columns, placeholder=NONE, alt=says)


def _yes_or_no(value: Any) -> Any:
    """A truth value as a word: a box that is not ticked and one that nobody knows look alike."""
    return written("", value) if isinstance(value, bool) else value


def _column(name: str, values: pd.Series, currency: str) -> Any:
    title = label(name)
    if name in SHARES or name in ("fraud_probability", "mean_probability_30d"):
        return st.column_config.NumberColumn(title, format="percent")
    if name.endswith(("_id", "_version")) or name == "scenario":
        return st.column_config.NumberColumn(title, format="%d")
    if name == "amount" or "amount" in name:
        return st.column_config.NumberColumn(f"{title}, {currency}" if currency else title, format="accounting")
    if name.endswith("_at"):
        return st.column_config.DatetimeColumn(title, format="YYYY-MM-DD HH:mm:ss")
    if is_numeric(values):
        return st.column_config.NumberColumn(title, format="localized")
    return st.column_config.Column(title)
