"""The page of feature insight: what raised the probability of transactions of MEDIUM and HIGH risk."""

from __future__ import annotations

import streamlit as st

from etl.dashboard import charts, display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import plain

TOP, LINES = 20, 5
NOTHING = "This version explained no transaction of these days: choose more days, or another version."


def page() -> None:
    """Draw the page."""
    chosen = filters.shared(dimensions=(), has_currency=False)
    version = filters.version()
    features = ask(statements.features(chosen, version, TOP))
    if features.empty:
        st.info(NOTHING)
        return
    st.caption(
        f"The features that raised the probability most, {TOP} at most, among the reasons of transactions of MEDIUM and HIGH risk that "
        f"{plain(version.model_name)} {version.model_version} scored. Contributions are SHAP values in probability."
    )
    left, right = st.columns(2)
    with left:
        display.chart(
            "Contribution by feature",
            "Bars of the sum of contributions by feature.",
            charts.bars(features, "feature", "contribution", "Sum of contributions", len(features)),
            features,
            ("feature", "contribution", "transactions", "first_reasons"),
        )
    with right:
        display.chart(
            "First reasons by feature",
            "Bars of the number of transactions whose first reason a feature is.",
            charts.bars(features, "feature", "first_reasons", "Transactions", len(features)),
            features.sort_values(["first_reasons", "feature"], ascending=[False, True]),
            ("feature", "first_reasons", "transactions"),
        )
    names = [str(name) for name in features["feature"][:LINES]]
    weeks = ask(statements.features_by_week(chosen, version, names))
    display.chart(
        f"Contribution by week, the first {len(names)} features",
        "Lines of the sum of contributions by week for the features that contribute most.",
        charts.series(weeks, "week_on", "feature", "contribution", "Sum of contributions", names),
        weeks,
        ("week_on", "feature", "contribution"),
    )
