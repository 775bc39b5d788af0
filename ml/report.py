"""`var/report/index.html`: how good the champion is, what it looks at, and where the fraud is. One file, no network."""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from etl import ops
from etl.log import logger, run_main
from etl.settings import settings
from ml import datasets, models, registry
from ml.datasets import Rows
from ml.evaluation import DAY_MICROSECONDS, TOP_CARDS, Quality, daily_card_precision, date_of, precision_recall, quality
from ml.features import FEATURES
from ml.params import params

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from pyspark.sql import SparkSession

TEMPLATES = Path(__file__).parent / "templates"
EXPLAINED_ROWS = 20_000
TOP_TERMINALS = 15
TOP_FEATURES = 12
CALIBRATION_ROWS = 20
AMOUNTS = (0, 10, 20, 50, 100, 150, 200, 300, 500)
"""Lower bounds of the classes of amount."""

# Of one hue each, dark enough on white and light enough on black.
BLUE, ORANGE, GRAY = "#3b82c4", "#d9772b", "#8a8f98"


@dataclass(frozen=True)
class Figure:
    """A number and what it means."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Chart:
    """A picture and what it says in words."""

    title: str
    says: str
    svg: str


def chart(title: str, says: str, draw: Callable[[Axes], None], height: float = 3.0) -> Chart:
    """Draw a picture as SVG whose text and lines take the page's colour."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            # Identifiers in the file would otherwise change with each run.
            "svg.hashsalt": title,
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": INK,
        }
    ):
        figure, axes = plt.subplots(figsize=(5.2, height), layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        plt.close(figure)
    svg = buffer.getvalue()
    return Chart(title, says, svg[svg.index("<svg") :].replace(INK, "currentColor"))


INK = "#010203"
"""A colour that no chart uses: it becomes the page's own."""


def _as_percent(axis: Axis) -> None:
    """Label shares as percentages, as short as they can be said."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))


def _headline(rows: Rows, score: models.Floats, reached: Quality, currency: str) -> list[Figure]:
    """Return what the week comes to: how good the ranking is, and what the alarms would have found."""
    alarm = score >= params().thresholds.fraud
    hits = alarm & rows.is_fraud
    found, lost = rows.amount[hits].sum(), rows.amount[rows.is_fraud].sum()
    days = len(np.unique(rows.transacted_at // DAY_MICROSECONDS))
    return [
        Figure(f"{reached.average_precision:.3f}", f"average precision; ROC AUC {reached.roc_auc:.3f}"),
        Figure(
            f"{reached.card_precision:.3f}",
            f"card precision at {TOP_CARDS} a day; {reached.card_precision_share:.0%} of the best possible",
        ),
        Figure(f"{alarm.sum() / days:,.0f}", f"alarms a day; {hits.sum() / max(alarm.sum(), 1):.0%} of them fraud"),
        Figure(f"{hits.sum() / rows.is_fraud.sum():.0%}", f"of {rows.is_fraud.sum():,} frauds found by alarms"),
        Figure(f"{found / lost if lost else 0:.0%}", f"of the {lost:,.0f} {currency} of fraud found by alarms".replace("  ", " ")),
    ]


def _precision_recall(rows: Rows, score: models.Floats) -> Chart:
    precision, recall, threshold = precision_recall(rows.is_fraud, score)
    fraud = params().thresholds.fraud
    here = int(np.searchsorted(-threshold, -fraud, side="right")) - 1

    def draw(axes: Axes) -> None:
        axes.plot(np.append(0, recall), np.append(precision[0], precision), color=BLUE)
        if here >= 0:
            axes.plot(recall[here], precision[here], "o", color=ORANGE)
            # Below the curve on its left is room whatever the curve.
            axes.annotate(
                f"threshold {fraud:g}",
                (recall[here], precision[here]),
                xytext=(-8, -10),
                textcoords="offset points",
                ha="right",
                va="top",
            )
        axes.set(xlabel="frauds found (recall)", ylabel="alarms that are fraud (precision)", xlim=(0, 1), ylim=(0, 1.02))
        _as_percent(axes.xaxis)
        _as_percent(axes.yaxis)

    at = (
        f"At the threshold {fraud:g}, {precision[here]:.0%} of alarms are fraud and {recall[here]:.0%} of frauds are found."
        if here >= 0
        else f"No transaction reaches the threshold {fraud:g}."
    )
    return chart("Precision and recall", f"{at} Of all transactions {rows.is_fraud.mean():.2%} are fraud.", draw)


def _card_precision(rows: Rows, score: models.Floats, reached: Quality) -> Chart:
    day = rows.transacted_at // DAY_MICROSECONDS
    ours = daily_card_precision(day, rows.customer_id, rows.is_fraud, score)
    best = daily_card_precision(day, rows.customer_id, rows.is_fraud, rows.is_fraud.astype(np.float64))
    days = [f"{date_of(value):%d %b}" for value in np.unique(day)]

    def draw(axes: Axes) -> None:
        place = np.arange(len(days))
        axes.bar(place - 0.2, TOP_CARDS * ours, 0.4, color=BLUE, label="champion")
        axes.bar(place + 0.2, TOP_CARDS * best, 0.4, color=GRAY, alpha=0.6, label="best possible")
        axes.set(xticks=place, xticklabels=days, ylabel=f"compromised of {TOP_CARDS} cards")
        axes.grid(axis="x", visible=False)
        _legend(axes)

    says = (
        f"Of the {TOP_CARDS} most suspicious cards of each day, {reached.card_precision:.1%} were compromised: "
        f"{reached.card_precision_share:.0%} of what a perfect model could reach."
    )
    return chart("Daily card precision", says, draw)


def _calibration(rows: Rows, score: models.Floats) -> Chart:
    edges = np.array([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0000001])
    group = np.digitize(score, edges) - 1
    kept = [number for number in range(len(edges) - 1) if (group == number).sum() >= CALIBRATION_ROWS]
    said = np.array([score[group == number].mean() for number in kept])
    was = np.array([rows.is_fraud[group == number].mean() for number in kept])
    # A logarithm has no place for groups without fraud.
    seen = (was > 0) & (said > 0)

    def draw(axes: Axes) -> None:
        lowest = min(1e-3, *said[seen], *was[seen]) if seen.any() else 1e-3
        axes.plot([lowest, 1], [lowest, 1], color=GRAY, linestyle="--", label="perfectly calibrated")
        axes.plot(said[seen], was[seen], "o-", color=BLUE, label="champion")
        axes.set(xscale="log", yscale="log", xlabel="predicted probability (log scale)", ylabel="frauds (log scale)")
        _as_percent(axes.xaxis)
        _as_percent(axes.yaxis)
        _legend(axes)

    says = (
        f"On average the model says {score.mean():.2%}; {rows.is_fraud.mean():.2%} were fraud. "
        f"A point is a group of at least {CALIBRATION_ROWS} transactions."
    )
    return chart("Calibration", says, draw)


def _importance(model: models.Model, rows: Rows, score: models.Floats) -> Chart:
    # Evenly over the week, and all that the model finds suspicious: most rows say little.
    chosen = np.unique(
        np.concatenate((np.argsort(-score)[:2000], np.linspace(0, len(rows) - 1, min(len(rows), EXPLAINED_ROWS)).astype(np.int64)))
    )
    if not model.prepare():
        chosen = chosen[np.argsort(-score[chosen])][:3000]
    strength = np.abs(model.contributions(models.matrix(rows.take(chosen).columns, model.features))).mean(axis=0)
    order = np.argsort(-strength)[:TOP_FEATURES]
    names = [model.features[number].replace("_", " ") for number in order]

    def draw(axes: Axes) -> None:
        axes.barh(names[::-1], 100 * strength[order][::-1], color=BLUE)
        axes.set(xlabel="points of probability")
        axes.grid(axis="y", visible=False)

    says = (
        f"How far each feature moves the probability, up or down (mean absolute SHAP value), over {len(chosen):,} "
        f"transactions of the week. The {len(names)} strongest of {len(model.features)}."
    )
    return chart("What the model looks at", says, draw, height=0.8 + 0.24 * len(names))


def _by_day(sums: list[dict[str, Any]], as_of: dt.datetime) -> Chart:
    days = [row["day"] for row in sums]
    frauds, alarms = (np.array([row[name] for row in sums]) for name in ("frauds", "alarms"))
    delay = params().windows.delay_days
    labelled_to = as_of.date() - dt.timedelta(days=delay)

    def draw(axes: Axes) -> None:
        from matplotlib import dates

        axes.plot(days, alarms, color=ORANGE, label="called fraud", linewidth=1)
        axes.plot(days, frauds, color=BLUE, label="known fraud", linewidth=1.4)
        if days[-1] > labelled_to:
            axes.axvspan(max(labelled_to, days[0]), days[-1], color=GRAY, alpha=0.25, linewidth=0, label="labels to come")
        locator = dates.AutoDateLocator(minticks=1, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        axes.set(ylabel="transactions a day", ylim=(0, None))
        _legend(axes)

    says = (
        f"{frauds.sum():,} known frauds and {alarms.sum():,} transactions called fraud, {days[0]} to {days[-1]}. Labels take {delay} days."
    )
    return chart("Fraud by day", says, draw)


def _by_amount(sums: list[dict[str, Any]], currency: str) -> Chart:
    transactions, frauds, alarms = (np.array([row[name] for row in sums]) for name in ("transactions", "frauds", "alarms"))
    bounds = [AMOUNTS[row["class"]] for row in sums]
    unit = currency or "units of its currency"

    def draw(axes: Axes) -> None:
        place = np.arange(len(bounds))
        axes.bar(place - 0.2, 100 * frauds / transactions, 0.4, color=BLUE, label="known fraud")
        axes.bar(place + 0.2, 100 * alarms / transactions, 0.4, color=ORANGE, label="called fraud")
        axes.set(xticks=place, xticklabels=[str(bound) for bound in bounds])
        axes.set(xlabel=f"amount from … up to the next, {unit}", ylabel="transactions (log from 1%)", yscale="symlog", ylim=(0, 100))
        axes.set_yticks([0, 1, 10, 100], ["0%", "1%", "10%", "100%"])
        axes.grid(axis="x", visible=False)
        _legend(axes)

    def between(number: int) -> str:
        lowest = sums[number]["class"]
        bound = f"from {AMOUNTS[lowest]}" + (f" to {AMOUNTS[lowest + 1]}" if lowest + 1 < len(AMOUNTS) else "")
        return f"{bound} {currency}".rstrip()

    highest = int(np.argmax(frauds / transactions))
    most = int(np.argmax(frauds))
    says = (
        f"Riskiest {between(highest)}: {frauds[highest] / transactions[highest]:.1%} of {transactions[highest]:,} transactions "
        f"are known fraud. Most frauds {between(most)}: {frauds[most]:,} of {frauds.sum():,}."
    )
    return chart("Fraud by amount", says, draw)


def _by_terminal(sums: list[dict[str, Any]]) -> Chart:
    frauds, transactions = (np.array([row[name] for row in sums]) for name in ("frauds", "transactions"))
    names = [str(row["terminal_id"]) for row in sums]

    def draw(axes: Axes) -> None:
        axes.barh(names, frauds, color=BLUE, label="known fraud")
        axes.barh(names, transactions - frauds, left=frauds, color=GRAY, alpha=0.5, label="other transactions")
        axes.invert_yaxis()
        axes.set(xlabel="transactions", ylabel="terminal")
        axes.grid(axis="y", visible=False)
        _legend(axes)

    says = f"The {len(names)} terminals with most known frauds, {frauds.sum():,} together."
    return chart("Fraud by terminal", says, draw, height=0.8 + 0.24 * max(len(names), 4))


def _legend(axes: Axes) -> None:
    """Put the legend above the picture, where it hides nothing."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, columnspacing=1, handlelength=1.2)


def _sums(spark: SparkSession, as_of: dt.datetime) -> tuple[list[dict[str, Any]], ...]:
    """Predictions and known frauds by day, by class of amount, and of the worst terminals; predictions are read once."""
    classes = " ".join(f"WHEN p.amount < {bound} THEN {number}" for number, bound in enumerate(AMOUNTS[1:]))
    rows = (
        spark.sql(f"""
        SELECT date(p.transacted_at) AS day, p.terminal_id, CASE {classes} ELSE {len(AMOUNTS) - 1} END AS class,
               count(*) AS transactions, count(r.transaction_id) AS frauds, count_if(p.is_fraud) AS alarms
        FROM mart.predictions AS p LEFT JOIN (
            SELECT transaction_id FROM {datasets.REPORTS_TABLE}
            WHERE is_fraud AND reported_at <= timestamp_micros({datasets.micros(as_of)})
        ) AS r ON r.transaction_id = p.transaction_id
        GROUP BY GROUPING SETS ((1), (2), (3))
        """)
        .toArrow()
        .to_pylist()
    )
    by_day, by_terminal, by_class = ([row for row in rows if row[key] is not None] for key in ("day", "terminal_id", "class"))
    return (
        sorted(by_day, key=lambda row: row["day"]),
        sorted(by_class, key=lambda row: row["class"]),
        sorted(by_terminal, key=lambda row: (-row["frauds"], row["terminal_id"]))[:TOP_TERMINALS],
    )


def _currency(spark: SparkSession) -> str:
    """Return the currency of all amounts; empty where there are several, or none is named."""
    if "currency" not in spark.table(datasets.TRANSACTIONS_TABLE).columns:
        return ""
    found = spark.sql(f"SELECT DISTINCT currency FROM {datasets.TRANSACTIONS_TABLE} LIMIT 2").collect()
    return str(found[0][0]) if len(found) == 1 else ""


def _riskiest(spark: SparkSession) -> list[dict[str, Any]]:
    # The newest day is known from the table's metadata; the other days' files are not read.
    rows = spark.sql(
        "SELECT transaction_id, date_format(transacted_at, 'yyyy-MM-dd HH:mm') AS transacted_at, customer_id, terminal_id, "
        "CAST(amount AS string) AS amount, fraud_probability, risk_level, reasons FROM mart.predictions "
        "WHERE transacted_at >= (SELECT date_trunc('DAY', max(transacted_at)) FROM mart.predictions) "
        "ORDER BY fraud_probability DESC, transaction_id LIMIT 10"
    ).collect()
    return [row.asDict(recursive=True) for row in rows]


@dataclass(frozen=True)
class Page:
    """What the report says.

    Attributes
    ----------
    week
        First and last day that was measured on.
    rows, frauds
        Transactions of that week that were measured on, and how many of them are fraud.
    currency
        Of all amounts; empty where there are several.
    riskiest
        Predictions of the newest day with their reasons.
    """

    champion: registry.Version
    as_of: dt.datetime
    week: tuple[dt.date, dt.date]
    rows: int
    frauds: int
    currency: str
    figures: list[Figure]
    charts: list[Chart]
    riskiest: list[dict[str, Any]]


def report(path: Path, as_of: str) -> None:
    """Write the report.

    Raises
    ------
    NoChampionError
        When there is no model to report on.
    """
    from ml.spark import spark_session

    champion = registry.required_champion()
    model = models.load(registry.read_files(champion))
    spark = spark_session("report")
    now = datasets.moment(spark, as_of)
    week = datasets.newest_week(now, params().windows)
    rows = datasets.test_rows(spark, datasets.current_snapshots(spark), model.features, week, now)
    score = model.probability(models.matrix(rows.columns, model.features))
    reached = quality(rows.transacted_at, rows.customer_id, rows.is_fraud, score)
    currency = _currency(spark)
    charts = [
        _precision_recall(rows, score),
        _card_precision(rows, score, reached),
        _calibration(rows, score),
        _importance(model, rows, score),
    ]
    riskiest: list[dict[str, Any]] = []
    if spark.catalog.tableExists("mart.predictions"):
        by_day, by_amount, by_terminal = _sums(spark, now)
        if by_day:
            charts += [_by_day(by_day, now), _by_amount(by_amount, currency), _by_terminal(by_terminal)]
            riskiest = _riskiest(spark)
    figures = _headline(rows, score, reached, currency)
    days = (date_of(week.test_from), date_of(week.test_to - 1))
    write(path, Page(champion, now, days, len(rows), int(rows.is_fraud.sum()), currency, figures, charts, riskiest))
    logger.info("report written", path=str(path))


def write(path: Path, page: Page) -> None:
    """Fill the template and put the page in place, whole."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.html.j2").render(
        vars(page),
        features=json.loads(page.champion.tags["features"]),
        trained_to=dt.date.fromisoformat(page.champion.tags["train_to"]) - dt.timedelta(days=1),
        meanings={feature.name: feature.description for feature in FEATURES},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(prog="bash/report.sh", description=__doc__)
    parser.add_argument("--as-of", default="", help="with the labels known then (ISO 8601); by default the newest transaction")
    parser.add_argument("--out", type=Path, default=settings().data_dir / "report" / "index.html", help="the file to write")
    arguments = parser.parse_args()
    with ops.run("report"):
        report(arguments.out, arguments.as_of)
    print(arguments.out)


if __name__ == "__main__":
    run_main(main)
