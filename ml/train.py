"""Train the declared models, measure them on the newest labelled week, register them; the better one is the champion."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from etl import ops
from etl.log import logger, run_main
from ml import datasets, models, registry
from ml.datasets import Rows, Snapshots
from ml.evaluation import Quality, Week, date_of, quality
from ml.params import Declaration, Params, params

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Candidate:
    """A trained model and what it reached on the test week."""

    name: str
    files: dict[str, bytes]
    model: models.Model
    quality: Quality
    seconds: float


def measured(model: models.Model, rows: Rows) -> Quality:
    """Measure a model on test rows by the Handbook's protocol."""
    score = model.probability(models.matrix(rows.columns, model.features))
    return quality(rows.transacted_at, rows.customer_id, rows.is_fraud, score)


def metrics(reached: Quality) -> dict[str, float]:
    """Return measures by the names under which MLflow keeps them."""
    return {
        "roc_auc": reached.roc_auc,
        "average_precision": reached.average_precision,
        "card_precision_100": reached.card_precision,
        "card_precision_100_share": reached.card_precision_share,
    }


def fit_model(
    rows: DataFrame, name: str, declarations: Mapping[str, Declaration], declared: Params, done: dict[str, dict[str, bytes]]
) -> dict[str, bytes]:
    """Train a declared model.

    Parameters
    ----------
    rows
        Training rows with all features that the model reads.
    declarations
        Models by name, this one and the parts of an average among them.
    declared
        Seed, partitions, thresholds.
    done
        Parts that were trained on these rows already, by name; an average uses them and adds what it trains.

    Returns
    -------
    dict
        The model's files.
    """
    from ml.estimators import fit

    declaration = declarations[name]
    parts = declaration.of or (name,)
    # Parts of an average read the average's features.
    features = declaration.feature_names()
    for part in parts:
        if part not in done:
            done[part] = fit(rows, features, declarations[part], declared.seed, declared.partitions)
    described = {
        "name": name,
        "seed": declared.seed,
        "declarations": {part: declarations[part].model_dump(mode="json") for part in (name, *declaration.of)},
        "thresholds": declared.thresholds.model_dump(),
        "reasons": declared.reasons.model_dump(mode="json"),
    }
    return models.describe(features, {part: done[part] for part in parts}, described)


def train_candidates(
    spark: SparkSession,
    names: tuple[str, ...],
    declarations: Mapping[str, Declaration],
    declared: Params,
    snapshots: Snapshots,
    week: Week,
    as_of: dt.datetime,
    test: Rows,
) -> list[Candidate]:
    """Train each named model on the week's training days and measure it on its test rows."""
    done: dict[str, dict[str, bytes]] = {}
    wanted = features_of(names, declarations)
    rows = datasets.labelled(spark, snapshots, wanted, (week.train_from, week.train_to), as_of).cache()
    candidates = []
    try:
        for name in names:
            started = time.monotonic()
            files = fit_model(rows, name, declarations, declared, done)
            model = models.load(files)
            candidate = Candidate(name, files, model, measured(model, test), time.monotonic() - started)
            candidates.append(candidate)
            logger.info(
                "trained",
                model=name,
                test_from=str(week),
                seconds=round(candidate.seconds, 1),
                **{key: round(value, 4) for key, value in metrics(candidate.quality).items()},
            )
    finally:
        rows.unpersist()
    return candidates


def features_of(names: tuple[str, ...], declarations: Mapping[str, Declaration]) -> tuple[str, ...]:
    """Return the features that any of some models reads."""
    return tuple(dict.fromkeys(feature for name in names for feature in declarations[name].feature_names()))


def decide(candidate: Candidate, champion: registry.Version | None, champion_quality: Quality | None, problem: str) -> tuple[bool, str]:
    """Say whether a candidate becomes the champion, and why.

    Parameters
    ----------
    champion, champion_quality
        The present champion and what it reaches on the same rows; None where there is none or it cannot score.
    problem
        Why the champion cannot score, if so.
    """
    own = candidate.quality.average_precision
    if champion is None:
        return True, f"there was no champion; average precision {own:.4f} on the newest labelled week"
    if champion_quality is None:
        return True, f"the champion, {champion}, cannot score these rows: {problem}"
    theirs = champion_quality.average_precision
    if own > theirs:
        return True, f"average precision {own:.4f} on the newest labelled week, above {theirs:.4f} of {champion}"
    return False, f"average precision {own:.4f} on the newest labelled week is not above {theirs:.4f} of the champion, {champion}"


def train(names: list[str], as_of: str, this: ops.Run) -> tuple[list[registry.Version], bool, str]:
    """Train, measure, register and decide on the champion.

    Returns
    -------
    versions
        The registered versions, best first.
    is_promoted
        Whether the best of them is the champion now.
    why
        In one sentence.
    """
    from ml.spark import spark_session

    declared = params()
    chosen = declared.chosen(names)
    spark = spark_session("train")
    now = datasets.moment(spark, as_of)
    snapshots = datasets.current_snapshots(spark)
    week = datasets.newest_week(now, declared.windows)
    logger.info(
        "training",
        models=list(chosen),
        train_from=str(date_of(week.train_from)),
        test_from=str(date_of(week.test_from)),
        as_of=now.isoformat(),
    )
    standing = registry.champion()
    champion_model, problem = _loaded(standing, spark)
    wanted = dict.fromkeys(features_of(chosen, declared.models))
    if champion_model:
        wanted |= dict.fromkeys(champion_model.features)
    test = datasets.test_rows(spark, snapshots, tuple(wanted), week, now)
    candidates = train_candidates(spark, chosen, declared.models, declared, snapshots, week, now, test)
    champion_quality = measured(champion_model, test) if champion_model else None
    candidates.sort(key=lambda candidate: -candidate.quality.average_precision)
    window = {
        "train_from": str(date_of(week.train_from)),
        "train_to": str(date_of(week.train_to)),
        "test_from": str(date_of(week.test_from)),
        "test_to": str(date_of(week.test_to)),
        "as_of": now.isoformat(),
    }
    # One training at a time decides: otherwise two could each beat the same champion.
    with ops.writer(f"model.{declared.name}", this, wait_seconds=60):
        versions = [_registered(candidate, declared, snapshots, window, this) for candidate in candidates]
        is_promoted, why = decide(candidates[0], standing, champion_quality, problem)
        if is_promoted:
            registry.promote(versions[0])
    return versions, is_promoted, why


def _loaded(champion: registry.Version | None, spark: SparkSession) -> tuple[models.Model | None, str]:
    """Load the champion for a comparison, or say why it cannot be one."""
    if champion is None:
        return None, ""
    model = models.load(registry.read_files(champion))
    have = set(spark.table(datasets.FEATURES_TABLE).columns)
    if missing := [name for name in model.features if name not in have]:
        return None, f"{datasets.FEATURES_TABLE} lacks its {', '.join(missing)}"
    return model, ""


def _registered(candidate: Candidate, declared: Params, snapshots: Snapshots, window: Mapping[str, str], this: ops.Run) -> registry.Version:
    declaration = declared.models[candidate.name]
    tags = {
        "model": candidate.name,
        "features": json.dumps(candidate.model.features),
        "seed": declared.seed,
        "git_commit": registry.git_commit(),
        "run": this.run_id,
        **{f"snapshot_{table}": number for table, number in asdict(snapshots).items()},
        **window,
        "average_precision": round(candidate.quality.average_precision, 6),
        "params": json.dumps({part: declared.models[part].model_dump(mode="json") for part in (candidate.name, *declaration.of)}),
    }
    with registry.tracked(candidate.name, {"run": this.run_id, "git_commit": tags["git_commit"]}) as run_id:
        flat = {
            f"{part}.{key}": value
            for part in (declaration.of or (candidate.name,))
            for key, value in declared.models[part].parameters.items()
        }
        registry.log(run_id, {"model": candidate.name, "seed": declared.seed, **window, **flat}, metrics(candidate.quality))
        return registry.register(run_id, candidate.files, tags)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="bash/train.sh", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="declared in ml/params.yaml; without any: its `train`")
    parser.add_argument("--as-of", default="", help="train with what was known then (ISO 8601); by default the newest transaction")
    arguments = parser.parse_args()
    params().chosen(arguments.models)
    with ops.run("train") as this:
        versions, is_promoted, why = train(arguments.models, arguments.as_of, this)
    for version in versions:
        print(f"registered {version}: average precision {float(version.tags['average_precision']):.4f}")
    print(f"{versions[0]} is the champion: {why}" if is_promoted else f"the champion stays: {why}")


if __name__ == "__main__":
    run_main(main)
