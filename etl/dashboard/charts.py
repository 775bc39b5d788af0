"""The charts: pure functions from answers to Vega-Lite. Colours are legible on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from etl.dashboard.labels import SHARES, label

BLUE, ORANGE, GREEN, VIOLET, GRAY = "#3b82c4", "#d9772b", "#2f9e77", "#9a6fd0", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, VIOLET, GRAY)
BAR, AXIS = 24, 64
"""Pixels of a bar and of an axis with its title."""
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def form(measure: str, is_axis: bool = False) -> str:
    """Return how d3 writes a measure."""
    if measure in SHARES or measure == "roc_auc":
        return ".0%" if is_axis else ".1%"
    if measure == "contribution":
        return ",.6~g" if is_axis else ",.3f"
    return ",.2f" if measure.endswith("amount") and not is_axis else ",.0f"


def axis(measure: str, **further: Any) -> alt.Axis:
    """Return the axis of a measure; without digits after the point, its steps are whole numbers."""
    written = form(measure, is_axis=True)
    if written == ",.0f":
        further["tickMinStep"] = 1
    return alt.Axis(format=written, **further)


def _long(frame: pd.DataFrame, day: str, names: Sequence[str]) -> pd.DataFrame:
    """One row for each day and measure."""
    parts = [
        pd.DataFrame({"day": pd.to_datetime(frame[day]), "measure": label(name), "value": frame[name].astype(float)}) for name in names
    ]
    return pd.concat(parts, ignore_index=True)


def _days(frame: pd.DataFrame, day: str, names: Sequence[str], title: str) -> alt.Chart:
    return alt.Chart(_long(frame, day, names)).encode(
        alt.X("utcyearmonthdate(day):T").title(f"{label(day)} (UTC)"),
        alt.Y("value:Q").title(title).axis(axis(names[0])),
        alt.Color("measure:N")
        .title(None)
        .scale(domain=[label(name) for name in names], range=list(COLOURS[: len(names)]))
        .legend(orient="top"),
        tooltip=[
            alt.Tooltip("utcyearmonthdate(day):T", title=label(day), format="%Y-%m-%d"),
            alt.Tooltip("measure:N", title="Measure"),
            alt.Tooltip("value:Q", title="Value", format=form(names[0])),
        ],
    )


def lines(frame: pd.DataFrame, day: str, names: Sequence[str], title: str) -> alt.Chart:
    """Draw measures by day as lines; a day without a value is a gap."""
    return _days(frame, day, names, title).mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=2)


def stacks(frame: pd.DataFrame, day: str, names: Sequence[str], title: str) -> alt.Chart:
    """Draw measures that add up as stacked bars by day."""
    return _days(frame, day, names, title).mark_bar()


def bars(frame: pd.DataFrame, by: str, measure: str, title: str, places: int) -> alt.Chart:
    """Draw a measure as bars, the longest first; `by` names the column of what is compared, `places` is how many bars have room."""
    shown = pd.DataFrame({"name": frame[by].astype(str), "value": frame[measure].astype(float)})
    return (
        alt.Chart(shown, height=BAR * places + AXIS)
        .mark_bar(color=BLUE, size=BAR - 7)
        .encode(
            alt.X("value:Q").title(title).axis(axis(measure, labelFlush=True, tickCount=5)),
            alt.Y("name:N").title(label(by)).sort("-x").axis(labelLimit=260),
            tooltip=[alt.Tooltip("name:N", title=label(by)), alt.Tooltip("value:Q", title=title, format=form(measure))],
        )
    )


def heat(frame: pd.DataFrame, measure: str, title: str) -> alt.Chart:
    """Draw a measure by weekday and hour; darker or lighter than the page, as the theme has it."""
    shown = pd.DataFrame(
        {
            "weekday": [WEEKDAYS[day] for day in frame["weekday"]],
            "hour": frame["transacted_hour"].astype(int),
            "value": frame[measure].astype(float),
        }
    )
    return (
        alt.Chart(shown, height=BAR * len(WEEKDAYS) + 3 * AXIS)
        .mark_rect()
        .encode(
            alt.X("hour:O").title("Hour (UTC)").scale(domain=list(range(24))).axis(labelAngle=0),
            alt.Y("weekday:O").title("Weekday").sort(WEEKDAYS).scale(domain=list(WEEKDAYS)),
            alt.Color("value:Q").title(title).legend(format=form(measure, is_axis=True), orient="top", gradientLength=240),
            tooltip=[
                alt.Tooltip("weekday:O", title="Weekday"),
                alt.Tooltip("hour:O", title="Hour (UTC)"),
                alt.Tooltip("value:Q", title=title, format=form(measure)),
            ],
        )
    )


def series(frame: pd.DataFrame, day: str, by: str, measure: str, title: str, order: Sequence[str]) -> alt.Chart:
    """Draw one measure by day as a line for each value of a column, in a given order of colours."""
    shown = pd.DataFrame({"day": pd.to_datetime(frame[day]), "name": frame[by].astype(str), "value": frame[measure].astype(float)})
    return (
        alt.Chart(shown, height=400)
        .mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=2)
        .encode(
            alt.X("utcyearmonthdate(day):T").title(f"{label(day)} (UTC)"),
            alt.Y("value:Q").title(title).axis(axis(measure)),
            alt.Color("name:N")
            .title(None)
            .scale(domain=list(order), range=list(COLOURS[: len(order)]))
            .legend(orient="top", columns=3, labelLimit=300),
            tooltip=[
                alt.Tooltip("utcyearmonthdate(day):T", title=label(day), format="%Y-%m-%d"),
                alt.Tooltip("name:N", title=label(by)),
                alt.Tooltip("value:Q", title=title, format=form(measure)),
            ],
        )
    )


def logarithmic(title: str) -> alt.Y:
    """Return an axis on which tables of very different size can be read."""
    return alt.Y("value:Q").title(title).scale(type="log").axis(format=",.0f", values=[10**power for power in range(10)])
