"""The filters at the side of each page. They stand in the page's address, so a link or a bookmark keeps them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from etl.dashboard import statements
from etl.dashboard.answers import KEPT_SECONDS, ask
from etl.dashboard.labels import label
from etl.dashboard.statements import DIMENSIONS, Filters, Version
from etl.errors import WarehouseError

DAYS = 90
"""Days that a page shows at first."""
CHOICES_SECONDS = 600


class FilterError(WarehouseError):
    """Filters that cannot be."""


def range_of_days(first_on: dt.date, last_on: dt.date, prefix: str = "") -> tuple[dt.date, dt.date]:
    """Let the reader choose a range of days; at first it is the newest ones.

    Raises
    ------
    FilterError
        When it ends before it begins.
    """
    held = f"There are records from {first_on} to {last_on}."
    begin = max(first_on, last_on - dt.timedelta(days=DAYS - 1))
    chosen = [
        st.sidebar.date_input(name, value, key=f"{prefix}{key}", format="YYYY-MM-DD", help=held, bind="query-params")
        for name, key, value in (("From (UTC)", "from", begin), ("To, included (UTC)", "to", last_on))
    ]
    begin, end = (day if isinstance(day, dt.date) else value for day, value in zip(chosen, (begin, last_on), strict=True))
    if begin > end:
        raise FilterError(f"the days go from {begin} to {end}: choose a first day that is not after the last one")
    return begin, end


def shared(dimensions: Sequence[str] = DIMENSIONS, has_currency: bool = True) -> Filters:
    """Let the reader choose days, a currency, and values of the dimensions that the page's marts have.

    Raises
    ------
    FilterError
        When there is nothing to choose from, or the days cannot be.
    """
    held = _choices()
    with st.sidebar:
        st.header("Filters", anchor=False)
        currency = str(held["currency"][0])
        if has_currency:
            # Amounts of different currencies are never added: it is one of them.
            currency = st.selectbox("Currency", list(held["currency"]), key="currency", bind="query-params")
        of = held[held["currency"] == currency].iloc[0] if has_currency else _all(held)
        begin, end = range_of_days(of["first_on"], of["last_on"])
        values = {
            name: tuple(
                st.multiselect(label(name), json.loads(str(of[name])), key=name, placeholder="All", bind="query-params", select_all=False)
            )
            for name in dimensions
        }
    return Filters(begin, end, currency, **values)


@st.cache_data(ttl=CHOICES_SECONDS, max_entries=1, show_spinner=False)
def _choices() -> pd.DataFrame:
    """What can be chosen, asked anew less often than the rest; that there is nothing is not kept."""
    held = ask(statements.choices())
    if held.empty:
        raise FilterError("the marts hold no transaction yet: run bash/load.sh full, bash/train.sh and bash/score.sh, then bash/marts.sh")
    return held


def _all(held: pd.DataFrame) -> pd.Series:
    return pd.Series({"first_on": held["first_on"].min(), "last_on": held["last_on"].max()})


def version() -> Version:
    """Let the reader choose a model version, at first the champion.

    Raises
    ------
    FilterError
        When there is none.
    """
    held = _versions()
    if not held:
        raise FilterError("no model version is registered yet: run bash/train.sh and bash/score.sh, then bash/marts.sh")
    return held[st.sidebar.selectbox("Model version", list(held), key="version", bind="query-params")]


def scored_by() -> Version | None:
    """Let the reader choose a model version, or none in particular."""
    held = _versions()
    chosen = st.sidebar.selectbox("Scored by", list(held), index=None, key="scored_by", placeholder="Any version", bind="query-params")
    return held[chosen] if chosen else None


def _versions() -> dict[str, Version]:
    rows = ask(statements.versions())
    held = [Version(*row) for row in zip(rows["model_name"], rows["model_version"], rows["is_champion"], strict=True)]
    return {str(one): one for one in held}


def freshness() -> None:
    """Say how old the answers may be, and let the reader ask again."""
    with st.sidebar:
        if st.button("Ask again", help=f"Answers are kept for {KEPT_SECONDS} seconds."):
            ask.clear()
            _choices.clear()
            st.rerun()
