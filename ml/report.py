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
    from pyspark.sql import SparkSession

TEMPLATES = Path(__file__).parent / "templates"
EXPLAINED_ROWS = 20_000
TOP_TERMINALS = 15
TOP_FEATURES = 18
AMOUNTS = (0, 10, 20, 50, 100, 150, 200, 300, 500)
"""Lower bounds of the classes of amount."""

# Of one hue each, dark enough on white and light enough on black.
BLUE, ORANGE, GRAY = "#3b82c4", "#d9772b", "#8a8f98"


@dataclass(frozen=True)
class Chart:
    """A picture and what it says in words."""

    title: str
    says: str
    svg: str


def chart(title: str, says: str, draw: Callable[[Axes], None], height: float = 3.2) -> Chart:
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
        figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    return Chart(title, says, svg[svg.index("<svg") :].replace(INK, "currentColor"))


INK = "#010203"
"""A colour that no chart uses: it becomes the page's own."""


def _precision_recall(rows: Rows, score: models.Floats, reached: Quality) -> Chart:
    precision, recall, threshold = precision_recall(rows.is_fraud, score)
    fraud = params().thresholds.fraud
    here = int(np.searchsorted(-threshold, -fraud, side="right")) - 1

    def draw(axes: Axes) -> None:
        axes.plot(np.append(0, recall), np.append(precision[0], precision), color=BLUE)
        if here >= 0:
            axes.plot(recall[here], precision[here], "o", color=ORANGE)
            axes.annotate(f"threshold {fraud:g}", (recall[here], precision[here]), xytext=(8, 8), textcoords="offset points")
        axes.set(xlabel="share of frauds found (recall)", ylabel="share of alarms that are fraud", xlim=(0, 1), ylim=(0, 1.02))

    at = (
        f"At the threshold {fraud:g}, {precision[here]:.0%} of alarms are fraud and {recall[here]:.0%} of frauds are found."
        if here >= 0
        else ""
    )
    return chart("Precision and recall", f"Average precision {reached.average_precision:.3f}, ROC AUC {reached.roc_auc:.3f}. {at}", draw)


def _card_precision(rows: Rows, score: models.Floats, reached: Quality) -> Chart:
    day = rows.transacted_at // DAY_MICROSECONDS
    ours = daily_card_precision(day, rows.customer_id, rows.is_fraud, score)
    best = daily_card_precision(day, rows.customer_id, rows.is_fraud, rows.is_fraud.astype(np.float64))
    days = [f"{date_of(value):%d %b}" for value in np.unique(day)]

    def draw(axes: Axes) -> None:
        place = np.arange(len(days))
        axes.bar(place - 0.2, ours, 0.4, color=BLUE, label="champion")
        axes.bar(place + 0.2, best, 0.4, color=GRAY, alpha=0.6, label="best possible")
        axes.set(xticks=place, xticklabels=days, ylabel=f"CP@{TOP_CARDS}")
        axes.legend(frameon=False)

    says = (
        f"Of the {TOP_CARDS} most suspicious cards of each day, {reached.card_precision:.1%} were compromised: "
        f"{reached.card_precision_share:.0%} of what a perfect model could reach."
    )
    return chart("Daily card precision", says, draw)


def _calibration(rows: Rows, score: models.Floats) -> Chart:
    edges = np.array([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0000001])
    group = np.digitize(score, edges) - 1
    kept = [number for number in range(len(edges) - 1) if (group == number).sum() >= 20]
    said = np.array([score[group == number].mean() for number in kept])
    was = np.array([rows.is_fraud[group == number].mean() for number in kept])

    def draw(axes: Axes) -> None:
        axes.plot([1e-4, 1], [1e-4, 1], color=GRAY, linestyle="--", label="perfectly calibrated")
        seen = was > 0
        axes.plot(said[seen], was[seen], "o-", color=BLUE, label="champion")
        axes.set(xscale="log", yscale="log", xlabel="probability said", ylabel="share of frauds")
        axes.legend(frameon=False)

    says = f"On average the model says {score.mean():.2%}; {rows.is_fraud.mean():.2%} were fraud. Groups of at least 20 transactions."
    return chart("Calibration", says, draw)


def _importance(model: models.Model, rows: Rows) -> Chart:
    # Evenly over the week, and all that the model finds suspicious: most rows say little.
    score = model.probability(models.matrix(rows.columns, model.features))
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
        axes.set(xlabel="mean absolute SHAP contribution, points of probability")
        axes.grid(axis="y", visible=False)

    says = (
        f"What moves the probability most, over {len(chosen):,} transactions of the week: {names[0]}, then {names[1]}."
        if len(names) > 1
        else ""
    )
    return chart("What the model looks at", says, draw, height=0.8 + 0.27 * len(names))


def _by_day(table: Any) -> Chart:
    days = table["day"].to_pylist()
    frauds, found = table["frauds"].to_numpy(), table["alarms"].to_numpy()

    def draw(axes: Axes) -> None:
        axes.plot(days, found, color=ORANGE, label="called fraud", linewidth=1)
        axes.plot(days, frauds, color=BLUE, label="known fraud", linewidth=1.4)
        axes.set(ylabel="transactions a day", ylim=(0, None))
        axes.legend(frameon=False)

    late = f" Labels of the last {params().windows.delay_days} days have not arrived yet." if len(days) else ""
    return chart("Fraud by day", f"{int(frauds.sum()):,} known frauds, {int(found.sum()):,} transactions called fraud.{late}", draw)


def _by_amount(table: Any) -> Chart:
    rows = sorted(table.to_pylist(), key=lambda row: row["class"])
    names = [
        f"{AMOUNTS[row['class']]}-{AMOUNTS[row['class'] + 1]}" if row["class"] + 1 < len(AMOUNTS) else f"{AMOUNTS[-1]}+" for row in rows
    ]
    share = np.array([row["frauds"] / row["transactions"] for row in rows])
    said = np.array([row["alarms"] / row["transactions"] for row in rows])

    def draw(axes: Axes) -> None:
        place = np.arange(len(names))
        axes.bar(place - 0.2, 100 * share, 0.4, color=BLUE, label="known fraud")
        axes.bar(place + 0.2, 100 * said, 0.4, color=ORANGE, label="called fraud")
        axes.set(xticks=place, xticklabels=names, xlabel="amount", ylabel="% of transactions", yscale="symlog")
        axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes.legend(frameon=False)

    highest = rows[int(np.argmax(share))] if rows else {}
    says = (
        f"Highest share from {AMOUNTS[highest['class']]} on: {share.max():.1%} of {highest['transactions']:,} transactions." if rows else ""
    )
    return chart("Fraud by amount", says, draw)


def _by_terminal(table: Any) -> Chart:
    rows = table.to_pylist()

    def draw(axes: Axes) -> None:
        names = [str(row["terminal_id"]) for row in rows][::-1]
        axes.barh(names, [row["frauds"] for row in rows][::-1], color=BLUE, label="known fraud")
        axes.barh(names, [row["transactions"] - row["frauds"] for row in rows][::-1], left=[row["frauds"] for row in rows][::-1],
                  color=GRAY, alpha=0.5, label="other transactions")  # fmt: skip
        axes.set(xlabel="transactions", ylabel="terminal")
        axes.grid(axis="y", visible=False)
        axes.legend(frameon=False)

    says = f"The {len(rows)} terminals with most known frauds; together {sum(row['frauds'] for row in rows):,}."
    return chart("Fraud by terminal", says, draw, height=0.8 + 0.27 * max(len(rows), 4))


def _sums(spark: SparkSession, as_of: dt.datetime) -> tuple[Any, Any, Any]:
    """Predictions and known frauds by day, by class of amount, and of the worst terminals."""
    classes = " ".join(f"WHEN amount < {bound} THEN {number}" for number, bound in enumerate(AMOUNTS[1:]))
    spark.sql(f"""
        SELECT p.transacted_at, p.terminal_id, p.is_fraud AS is_alarm, r.transaction_id IS NOT NULL AS is_known,
               CASE {classes} ELSE {len(AMOUNTS) - 1} END AS class
        FROM mart.predictions AS p LEFT JOIN (
            SELECT transaction_id FROM {datasets.REPORTS_TABLE}
            WHERE is_fraud AND reported_at <= timestamp_micros({datasets.micros(as_of)})
        ) AS r ON r.transaction_id = p.transaction_id
    """).createOrReplaceTempView("scored")
    counted = "count(*) AS transactions, count_if(is_known) AS frauds, count_if(is_alarm) AS alarms"
    return (
        spark.sql(f"SELECT date(transacted_at) AS day, {counted} FROM scored GROUP BY 1 ORDER BY 1").toArrow(),
        spark.sql(f"SELECT class, {counted} FROM scored GROUP BY 1").toArrow(),
        spark.sql(
            f"SELECT terminal_id, {counted} FROM scored GROUP BY 1 ORDER BY frauds DESC, terminal_id LIMIT {TOP_TERMINALS}"
        ).toArrow(),
    )


def _riskiest(spark: SparkSession) -> list[dict[str, Any]]:
    rows = spark.sql(
        "SELECT transaction_id, date_format(transacted_at, 'yyyy-MM-dd HH:mm') AS transacted_at, customer_id, terminal_id, "
        "CAST(amount AS string) AS amount, fraud_probability, risk_level, reasons FROM mart.predictions "
        "ORDER BY date(transacted_at) DESC, fraud_probability DESC LIMIT 10"
    ).collect()
    return [row.asDict(recursive=True) for row in rows]


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
    snapshots = datasets.current_snapshots(spark)
    week = datasets.newest_week(now, params().windows)
    rows = datasets.test_rows(spark, snapshots, model.features, week, now)
    score = model.probability(models.matrix(rows.columns, model.features))
    reached = quality(rows.transacted_at, rows.customer_id, rows.is_fraud, score)
    charts = [
        _precision_recall(rows, score, reached),
        _card_precision(rows, score, reached),
        _calibration(rows, score),
        _importance(model, rows),
    ]
    riskiest: list[dict[str, Any]] = []
    if spark.catalog.tableExists("mart.predictions"):
        by_day, by_amount, by_terminal = _sums(spark, now)
        if by_day.num_rows:
            charts += [_by_day(by_day), _by_amount(by_amount), _by_terminal(by_terminal)]
            riskiest = _riskiest(spark)
    write(
        path,
        charts,
        champion,
        reached,
        riskiest,
        now,
        (date_of(week.test_from), date_of(week.test_to - 1)),
        len(rows),
        int(rows.is_fraud.sum()),
    )
    logger.info("report written", path=str(path))


def write(
    path: Path,
    charts: list[Chart],
    champion: registry.Version,
    reached: Quality,
    riskiest: list[dict[str, Any]],
    as_of: dt.datetime,
    week: tuple[dt.date, dt.date],
    rows: int,
    frauds: int,
) -> None:
    """Fill the template and put the page in place, whole."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        charts=charts,
        champion=champion,
        features=json.loads(champion.tags["features"]),
        meanings={feature.name: feature.description for feature in FEATURES},
        reached=reached,
        riskiest=riskiest,
        as_of=as_of,
        week=week,
        rows=rows,
        frauds=frauds,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(prog="bash/report.sh", description=__doc__)
    parser.add_argument("--as-of", default="", help="with the labels known then (ISO 8601); by default the newest transaction")
    arguments = parser.parse_args()
    path = settings().data_dir / "report" / "index.html"
    with ops.run("report"):
        report(path, arguments.as_of)
    print(path)


if __name__ == "__main__":
    run_main(main)
