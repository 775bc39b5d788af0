"""The page of model performance: precision, recall and more by day as labels arrive, by version."""

from __future__ import annotations

import streamlit as st

from etl.dashboard import charts, display, filters, statements
from etl.dashboard.answers import ask
from etl.dashboard.labels import label, meaning, number, plain, ratio, share

NOTHING = (
    "No labelled day of this version lies in these days: labels arrive a week after a transaction, and days that it was trained on "
    "never count. Choose earlier days, or days before its training as well."
)


def page() -> None:
    """Draw the page."""
    chosen = filters.shared(dimensions=(), has_currency=False)
    version = filters.version()
    is_after_training = st.sidebar.toggle(
        "Only days after training", True, key="after", help=meaning("model_performance", "is_after_training"), bind="query-params"
    )
    days = ask(statements.performance(chosen, version, is_after_training))
    if days.empty:
        st.info(NOTHING)
    else:
        total = {name: days[name].sum() for name in ("frauds", "predicted_frauds", "caught_frauds", "false_alarms")}
        means = {name: days[name].dropna().astype(float).mean() for name in ("roc_auc", "card_precision")}
        decided = f"Decisions of {version.model_name} {version.model_version} on {len(days)} labelled days."
        st.caption(f"{plain(decided)} ROC AUC and card precision are means of days.")
        display.tiles(
            ("Precision", share(ratio(total["caught_frauds"], total["predicted_frauds"])), meaning("model_performance", "precision")),
            ("Recall", share(ratio(total["caught_frauds"], total["frauds"])), meaning("model_performance", "recall")),
            (
                "F1",
                share(ratio(2 * total["caught_frauds"], total["predicted_frauds"] + total["frauds"])),
                meaning("model_performance", "f1"),
            ),
            (
                "ROC AUC",
                number(float(means["roc_auc"])) if days["roc_auc"].notna().any() else "–",
                meaning("model_performance", "roc_auc"),
            ),
            (label("card_precision"), share(means["card_precision"]), meaning("model_performance", "card_precision")),
            ("Labelled days", number(len(days)), "Days of the range whose labels have arrived"),
            ("Frauds", number(total["frauds"]), meaning("model_performance", "frauds")),
            ("False alarms", number(total["false_alarms"]), meaning("model_performance", "false_alarms")),
        )
        display.chart(
            "Precision and recall by day",
            "Lines of precision and recall by day.",
            charts.lines(days, "transacted_on", ("precision", "recall"), "Share"),
            days,
            ("transacted_on", "precision", "recall", "f1", "frauds", "predicted_frauds", "caught_frauds"),
        )
        display.chart(
            "Caught, missed and false alarms by day",
            "Stacked bars of caught frauds, missed frauds and false alarms by day.",
            charts.stacks(days, "transacted_on", ("caught_frauds", "missed_frauds", "false_alarms"), "Transactions"),
            days,
            ("transacted_on", "transactions", "frauds", "caught_frauds", "missed_frauds", "false_alarms"),
        )
        display.chart(
            "Ranking by day",
            "Lines of card precision at 100 and of the area under the ROC curve by day.",
            charts.lines(days, "transacted_on", ("card_precision", "roc_auc"), "Card precision and ROC AUC"),
            days,
            ("transacted_on", "card_precision", "roc_auc", "is_after_training"),
        )
    versions = ask(statements.compared(chosen, is_after_training))
    if not versions.empty:
        st.subheader("Versions compared", anchor=False)
        st.caption(
            "Over the chosen days. ROC AUC and card precision are means of days; versions that scored other days cannot be compared."
        )
        display.table(
            versions,
            ("model_name", "model_version", "days", "transactions", "frauds", "predicted_frauds", "caught_frauds", "false_alarms",
             "precision", "recall", "f1", "roc_auc", "card_precision"),
        )  # fmt: skip
