"""Measure models by the Fraud Detection Handbook's protocol: its published figures beside ours, and means of five weeks."""

from __future__ import annotations

import argparse
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np

from etl import ops
from etl.log import logger, run_main
from ml import datasets, models, registry
from ml.datasets import Snapshots
from ml.evaluation import Quality, Week, mean_quality, quality
from ml.params import Params, params
from ml.train import features_of, metrics, train_candidates

if TYPE_CHECKING:
    import datetime as dt

    from pyspark.sql import SparkSession
    from rich.table import Table

PUBLISHED = {
    "logistic_regression": (0.871, 0.606, 0.291),
    "decision_tree": (0.788, 0.309, 0.243),
    "random_forest": (0.867, 0.658, 0.287),
    "xgboost": (0.862, 0.639, 0.273),
}
"""ROC AUC, average precision, CP@100 of the Handbook, chapter "Baseline fraud detection system", test week 2018-08-08."""

SMOTE_NEIGHBOURS = 5


class Bench:
    """What every measurement of a run shares: the session, the snapshots, the moment."""

    def __init__(self, spark: SparkSession, declared: Params, as_of: dt.datetime, snapshots: Snapshots) -> None:
        self.spark = spark
        self.declared = declared
        self.as_of = as_of
        self.snapshots = snapshots
        self.newest = datasets.newest_week(as_of, declared.windows)
        (row,) = spark.sql(f"SELECT unix_micros(min(transacted_at)) FROM {datasets.FEATURES_TABLE}").collect()
        self.first_day = int(row[0]) // datasets.DAY_MICROSECONDS

    def covers(self, week: Week) -> bool:
        """Tell whether a week's days lie in the data, its labels known."""
        return week.train_from >= self.first_day and week.test_from <= self.newest.test_from

    def published_week(self) -> Week:
        """Return the week of the Handbook's figures, or the newest where the data does not cover it."""
        windows = self.declared.windows
        week = Week.of(str(self.declared.handbook.test_from), windows.train_days, windows.delay_days, windows.test_days)
        return week if self.covers(week) else self.newest

    def weeks(self) -> list[Week]:
        """Return the published week with two neighbours on either side, or the newest five weeks that the data covers."""
        around = self.published_week().around()
        if all(map(self.covers, around)):
            return around
        return [week for week in self.newest.around((-28, -21, -14, -7, 0)) if self.covers(week)]

    def handbook(self) -> dict[str, Quality]:
        """Measure the Handbook's models on its features and week."""
        declarations = self.declared.handbook.models
        week = self.published_week()
        test = datasets.test_rows(self.spark, self.snapshots, features_of(tuple(declarations), declarations), week, self.as_of)
        trained = train_candidates(
            self.spark, tuple(declarations), declarations, self.declared, self.snapshots, week, self.as_of, test
        )  # fmt: skip
        return {candidate.name: candidate.quality for candidate in trained}

    def compare(self, names: tuple[str, ...]) -> dict[str, list[Quality]]:
        """Measure declared models on each of several weeks."""
        reached: dict[str, list[Quality]] = {name: [] for name in names}
        declarations = self.declared.models
        for week in self.weeks():
            test = datasets.test_rows(self.spark, self.snapshots, features_of(names, declarations), week, self.as_of)
            for candidate in train_candidates(self.spark, names, declarations, self.declared, self.snapshots, week, self.as_of, test):
                reached[candidate.name].append(candidate.quality)
        return reached

    def balancing(self) -> dict[str, list[Quality]]:
        """Measure XGBoost with no weights, balanced weights and SMOTE; trained in this process, for SMOTE makes rows."""
        from ml.estimators import train_booster, xgboost_parameters

        declaration = self.declared.models["xgboost"]
        features = declaration.feature_names()
        parameters = xgboost_parameters(declaration, self.declared.seed, threads=2)
        reached: dict[str, list[Quality]] = {"no weights": [], "balanced weights": [], "SMOTE": []}
        for week in self.weeks():
            test = datasets.test_rows(self.spark, self.snapshots, features, week, self.as_of)
            days = (week.train_from, week.train_to)
            train = datasets.collected(datasets.labelled(self.spark, self.snapshots, features, days, self.as_of), features)
            rows, label = models.matrix(train.columns, features), train.is_fraud
            share = (~label).sum() / label.sum()
            for name, (some, theirs, weights) in {
                "no weights": (rows, label, None),
                "balanced weights": (rows, label, np.where(label, share, 1.0)),
                "SMOTE": (*smote(rows, label, self.declared.seed), None),
            }.items():
                model = models.Trees(
                    train_booster(some, theirs.astype(np.int32), weights, parameters, declaration.rounds), is_logistic=True
                )
                score = model.probability(models.matrix(test.columns, features))
                reached[name].append(quality(test.transacted_at, test.customer_id, test.is_fraud, score))
        return reached


def smote(rows: models.Matrix, label: np.ndarray, seed: int) -> tuple[models.Matrix, np.ndarray]:
    """Add made-up frauds until both classes are equally many.

    Each lies on the line between a fraud and one of its nearest other frauds, features standardised (Chawla et al.
    2002, "SMOTE: Synthetic Minority Over-sampling Technique").
    """
    from sklearn.neighbors import NearestNeighbors

    frauds = rows[label]
    missing = int((~label).sum() - label.sum())
    neighbours = min(SMOTE_NEIGHBOURS, len(frauds) - 1)
    if missing <= 0 or neighbours < 1:
        return rows, label
    scale = rows.std(axis=0)
    scaled = frauds / np.where(scale > 0, scale, 1)
    # The nearest of each fraud is itself.
    near = NearestNeighbors(n_neighbors=neighbours + 1).fit(scaled).kneighbors(scaled, return_distance=False)[:, 1:]
    random = np.random.default_rng(seed)
    of = random.integers(len(frauds), size=missing)
    towards = near[of, random.integers(neighbours, size=missing)]
    step = random.random((missing, 1), dtype=np.float32)
    made = frauds[of] + step * (frauds[towards] - frauds[of])
    return np.concatenate((rows, made)), np.concatenate((label, np.ones(missing, np.bool_)))


def handbook_table(reached: dict[str, Quality], week: Week) -> Table:
    """Lay the published figures beside ours."""
    from rich.table import Table

    is_theirs = str(week) == "2018-08-08"
    title = f"The Handbook's protocol, its 15 features, test week {week}" + ("" if is_theirs else " (published: 2018-08-08)")
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in ("AUC ROC", "published", "AP", "published", "CP@100", "published", "of best"):
        table.add_column(column, justify="right")
    for name, ours in reached.items():
        theirs = PUBLISHED[name]
        cells = [f"{value:.3f}" for pair in zip(astuple(ours)[:3], theirs, strict=True) for value in pair]
        table.add_row(name.replace("_", " "), *cells, f"{ours.card_precision_share:.0%}")
    return table


def weeks_table(reached: dict[str, list[Quality]], weeks: list[Week], title: str) -> Table:
    """Lay out means over weeks, and each week's average precision."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in ("AUC ROC", "AP", "CP@100", "of best", *(f"AP {str(week)[5:]}" for week in weeks)):
        table.add_column(column, justify="right")
    for name, each in reached.items():
        mean = mean_quality(each)
        table.add_row(
            name.replace("_", " "),
            *(f"{value:.3f}" for value in (mean.roc_auc, mean.average_precision, mean.card_precision)),
            f"{mean.card_precision_share:.0%}",
            *(f"{week.average_precision:.3f}" for week in each),
        )
    return table


def evaluate(names: list[str], as_of: str, with_smote: bool, this: ops.Run) -> None:
    """Measure, print the tables, and write the figures to MLflow."""
    from rich.console import Console

    from ml.spark import spark_session

    declared = params()
    chosen = declared.chosen(names, declared.compare)
    spark = spark_session("evaluate")
    bench = Bench(spark, declared, datasets.moment(spark, as_of), datasets.current_snapshots(spark))
    weeks = bench.weeks()
    console = Console(width=None if Console().is_terminal else 140)
    with registry.tracked("evaluate", {"run": this.run_id, "git_commit": registry.git_commit()}) as run_id:
        handbook = bench.handbook()
        console.print(handbook_table(handbook, bench.published_week()))
        compared = bench.compare(chosen)
        title = f"Our features, one week of training, means of {len(weeks)} test weeks"
        console.print(weeks_table(compared, weeks, title))
        figures = {f"handbook.{name}.{key}": value for name, each in handbook.items() for key, value in metrics(each).items()}
        for name, each in compared.items():
            figures |= {f"weeks.{name}.{key}": value for key, value in metrics(mean_quality(each)).items()}
        if with_smote:
            balanced = bench.balancing()
            console.print(weeks_table(balanced, weeks, "How the classes are balanced: XGBoost, the same weeks"))
            for name, each in balanced.items():
                figures |= {f"balancing.{name}.{key}": value for key, value in metrics(mean_quality(each)).items()}
        registry.log(run_id, {"as_of": bench.as_of.isoformat(), "weeks": ", ".join(map(str, weeks))}, figures)
    logger.info("evaluated", models=list(chosen), weeks=len(weeks), mlflow_run=run_id)


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(prog="bash/evaluate.sh", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="declared in ml/params.yaml; without any: its `compare`")
    parser.add_argument("--as-of", default="", help="with the labels known then (ISO 8601); by default the newest transaction")
    parser.add_argument("--smote", action="store_true", help="compare weights with SMOTE as well")
    arguments = parser.parse_args()
    params().chosen(arguments.models)
    with ops.run("evaluate") as this:
        evaluate(arguments.models, arguments.as_of, arguments.smote, this)


if __name__ == "__main__":
    run_main(main)
