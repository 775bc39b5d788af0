"""The page of patterns: where, how, with what and when cards are used, and when that is fraud."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from etl.dashboard import charts, display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import label, plain, ratio
from etl.dashboard.statements import DIMENSIONS

MEASURES = {
    "frauds": "Frauds",
    "fraud_share": "Fraud share of transactions",
    "fraud_amount": "Fraud amount",
    "missed_amount": "Money missed",
    "caught_share": "Share of frauds that were caught",
    "predicted_frauds": "Predicted frauds",
    "transactions": "Transactions",
    "amount": "Amount",
}
SHOWN = ("transactions", "amount", "frauds", "fraud_share", "fraud_amount", "predicted_frauds", "caught_share", "missed_amount")
COLUMNS = 2


def page() -> None:
    """Draw the page."""
    chosen = filters.shared()
    measure = st.selectbox("Measure", list(MEASURES), format_func=MEASURES.__getitem__, key="measure", bind="query-params", width=360)
    values = _with_shares(ask(statements.patterns(chosen)))
    if values.empty:
        st.info(display.NOTHING)
        return
    title = MEASURES[measure] + (f", {plain(chosen.currency)}" if measure.endswith("amount") else "")
    for start in range(0, len(DIMENSIONS), COLUMNS):
        names = DIMENSIONS[start : start + COLUMNS]
        # Charts beside each other are of one height.
        places = max(sum(values["dimension"] == name) for name in names)
        for column, name in zip(st.columns(COLUMNS), names, strict=True):
            of = values[values["dimension"] == name].rename(columns={"value": name})
            # A share of nothing is no bar, but stands in the table.
            drawn = of[of[measure].notna()]
            with column:
                display.chart(
                    f"{title} by {label(name).lower()}",
                    f"Bars of {title} by {label(name).lower()}.",
                    charts.bars(drawn, name, measure, title, places),
                    of,
                    (name, *SHOWN),
                    chosen.currency,
                )
    hours = _with_shares(ask(statements.hours(chosen)))
    hours["weekday_name"] = [charts.WEEKDAYS[day] for day in hours["weekday"]]
    display.chart(
        f"{title} by weekday and hour",
        f"Seven rows of weekdays, 24 columns of hours (UTC), coloured by {title}.",
        charts.heat(hours[hours[measure].notna()], measure, title),
        hours.rename(columns={"weekday": "day_number", "weekday_name": "weekday"}),
        ("weekday", "transacted_hour", *SHOWN),
        chosen.currency,
    )


def _with_shares(values: pd.DataFrame) -> pd.DataFrame:
    shares = {"fraud_share": ("frauds", "transactions"), "caught_share": ("caught_frauds", "frauds")}
    added = {
        name: pd.Series([ratio(one, other) for one, other in zip(values[part], values[whole], strict=True)], dtype=object)
        for name, (part, whole) in shares.items()
    }
    return values.assign(**added)
