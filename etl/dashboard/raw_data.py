"""The page of raw data: transactions with what is known and what was predicted; the first of an order, up to a limit."""

from __future__ import annotations

from typing import Literal, cast

import streamlit as st

from etl.dashboard import display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import money, number, plain
from etl.dashboard.statements import ORDERS, OUTCOMES, Rows

LIMITS = (100, 500, 2000)
LEVELS = ("HIGH", "MEDIUM", "LOW")
KEYS = {"transaction_id": "Transaction", "customer_id": "Customer", "terminal_id": "Terminal"}


def page() -> None:
    """Draw the page."""
    chosen = filters.shared()
    version = filters.scored_by()
    with st.sidebar:
        levels = st.multiselect("Risk level", LEVELS, key="risk", placeholder="All", bind="query-params", select_all=False)
        outcome = st.selectbox("Outcome", list(OUTCOMES), key="outcome", bind="query-params")
        keys = {
            name: st.number_input(title, value=None, min_value=0, step=1, key=name, placeholder="Any number", bind="query-params")
            for name, title in KEYS.items()
        }
    further = Rows(version, tuple(levels), outcome, **{name: int(key) for name, key in keys.items() if key is not None})
    left, right, _ = st.columns([1, 1, 2])
    order = cast(
        Literal["newest", "most suspicious", "largest"], left.selectbox("The first", list(ORDERS), key="order", bind="query-params")
    )
    limit = right.selectbox("At most, rows", LIMITS, index=1, key="limit", bind="query-params")
    shown = ask(statements.rows(chosen, further, order, limit))
    if shown.empty:
        st.info(display.NOTHING)
        return
    total = ask(statements.how_many(chosen, further)).iloc[0]
    st.markdown(
        f"The {number(len(shown))} {order} of **{number(total['transactions'])}** transactions that fit, which come to "
        f"**{money(total['amount'])}** {plain(chosen.currency)}. Narrow the filters to see others."
    )
    display.rows(shown, "Transactions with what is known of them and what was predicted.", height=680)
