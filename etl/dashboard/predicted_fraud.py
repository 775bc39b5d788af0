"""The page of predicted fraud: volume, value, what was caught and missed, by day; terminals and customers to look at."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from etl.dashboard import charts, display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import label, meaning, money, number, plain, ratio, share
from etl.dashboard.statements import AMOUNTS, COUNTS

TOP = 20


def page() -> None:
    """Draw the page."""
    chosen = filters.shared()
    days = ask(statements.daily(chosen))
    if days.empty:
        st.info(display.NOTHING)
        return
    total = {name: days[name].sum() for name in (*COUNTS, *AMOUNTS)}
    quality = ask(statements.champion_quality(chosen)).iloc[0]
    display.tiles(*_tiles(total, quality, chosen.currency))
    st.caption("Investigation takes days: frauds of the newest days are not known yet, and their alarms are not confirmed.")
    display.chart(
        "Frauds by day",
        "Lines of frauds known by now, predicted frauds and caught frauds by day.",
        charts.lines(days, "transacted_on", ("frauds", "predicted_frauds", "caught_frauds"), "Transactions"),
        days,
        ("transacted_on", "transactions", "frauds", "predicted_frauds", "caught_frauds", "missed_frauds", "unconfirmed_alarms"),
    )
    display.chart(
        f"Money caught and missed by day, {plain(chosen.currency)}",
        "Stacked bars of the amounts of frauds that were predicted and of those that were not, by day.",
        charts.stacks(days, "transacted_on", ("caught_amount", "missed_amount"), f"Amount of frauds, {chosen.currency}"),
        days,
        ("transacted_on", "amount", "fraud_amount", "caught_amount", "missed_amount"),
        chosen.currency,
    )
    st.subheader(f"The {TOP} riskiest terminals now", anchor=False)
    st.caption("Of the last 30 days, whatever days are chosen; country and category apply.")
    display.rows(ask(statements.riskiest_terminals(chosen, TOP)), "Terminals with their frauds and predicted frauds.")
    st.subheader(f"The {TOP} customers with the most predicted frauds now", anchor=False)
    st.caption(f"Of the last 30 days, whatever days are chosen; cards used in {plain(chosen.currency)}.")
    display.rows(ask(statements.suspicious_customers(chosen, TOP)), "Customers with their activity and predicted frauds.", chosen.currency)


def _tiles(total: dict[str, Any], quality: pd.Series, currency: str) -> list[tuple[str, str, str]]:
    def tile(name: str, value: str) -> tuple[str, str, str]:
        title = f"{label(name)}, {plain(currency)}" if name in AMOUNTS else label(name)
        return title, value, meaning("fraud_daily", name)

    precision = ratio(quality["caught_frauds"], quality["predicted_frauds"])
    recall = ratio(quality["caught_frauds"], quality["frauds"])
    after = "Of the champion, on those of these days that lie after its training and whose labels have arrived; all currencies."
    return [
        tile("transactions", number(total["transactions"])),
        tile("amount", money(total["amount"])),
        tile("frauds", number(total["frauds"])),
        ("Fraud share", share(ratio(total["frauds"], total["transactions"])), "Frauds among transactions"),
        tile("predicted_frauds", number(total["predicted_frauds"])),
        tile("caught_frauds", number(total["caught_frauds"])),
        tile("caught_amount", money(total["caught_amount"])),
        tile("missed_amount", money(total["missed_amount"])),
        tile("missed_frauds", number(total["missed_frauds"])),
        tile("unconfirmed_alarms", number(total["unconfirmed_alarms"])),
        ("Champion's precision", share(precision), f"Share of frauds among predicted ones. {after}"),
        ("Champion's recall", share(recall), f"Share of frauds that were predicted. {after}"),
    ]
