"""Training on Spark: MLlib's classifiers, and XGBoost in barrier tasks. Rows in, a model's files out.

The same seed gives the same model: rows are dealt out by key and sorted, weights of classes are whole numbers, and two
partial sums commute. xgboost.spark itself needs RDDs, which Spark Connect does not have, so XGBoost's own distributed
training runs here in a barrier `mapInArrow`: the same on the warm server, on YARN and on Kubernetes.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from etl.errors import WarehouseError
from etl.settings import settings
from etl.storage import storage
from ml import models
from ml.params import Declaration
from ml.spark import ship

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

LABEL = "is_fraud"
KEY = "transaction_id"
WEIGHT = "weight"
VECTOR = "features"


class NothingToLearnError(WarehouseError):
    """The training window has no fraud, or nothing but fraud."""


def fit(rows: DataFrame, features: tuple[str, ...], declared: Declaration, seed: int, partitions: int) -> dict[str, bytes]:
    """Train one part of a model.

    Parameters
    ----------
    rows
        `transaction_id`, the features as 32-bit floats, `is_fraud` as an integer.
    features
        What the model reads, in this order.
    declared
        The algorithm and its parameters; not an average.
    seed
        Of every random choice.
    partitions
        Into how many parts MLlib's rows are dealt out.

    Returns
    -------
    dict
        Files, as `ml.models` reads them.
    """
    weight = _fraud_weight(rows, declared)
    if declared.kind == "xgboost":
        return _fit_xgboost(rows, features, declared, seed, weight)
    return _fit_mllib(rows, features, declared, seed, partitions, weight)


def _fraud_weight(rows: DataFrame, declared: Declaration) -> float:
    from pyspark.sql import functions as F  # noqa: N812

    counted = rows.agg(F.count("*").alias("all"), F.sum(LABEL).alias("frauds")).first()
    total, frauds = (counted["all"], counted["frauds"] or 0) if counted else (0, 0)
    if not 0 < frauds < total:
        raise NothingToLearnError(
            f"of {total} training rows {frauds} are known frauds; choose a window that has both (--as-of), or load labels"
        )
    # Rounded: sums of whole numbers do not depend on their order.
    if declared.fraud_weight == "balanced":
        return float(round((total - frauds) / frauds))
    return declared.fraud_weight


# --- MLlib -----------------------------------------------------------------------------------------------------------


def _fit_mllib(
    rows: DataFrame, features: tuple[str, ...], declared: Declaration, seed: int, partitions: int, weight: float
) -> dict[str, bytes]:
    from pyspark.ml import classification
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import functions as F  # noqa: N812

    weighted = rows.withColumn(WEIGHT, F.when(F.col(LABEL) == 1, weight).otherwise(1.0))
    dealt = weighted.repartition(partitions, KEY).sortWithinPartitions(KEY)
    assembled = VectorAssembler(inputCols=list(features), outputCol=VECTOR).transform(dealt).select(VECTOR, WEIGHT, LABEL)
    common: dict[str, Any] = {"featuresCol": VECTOR, "labelCol": LABEL, "weightCol": WEIGHT, **declared.parameters}
    if declared.kind == "logistic_regression":
        estimator: Any = classification.LogisticRegression(**common)
    elif declared.kind == "random_forest":
        estimator = classification.RandomForestClassifier(seed=seed, **common)
    else:
        estimator = classification.GBTClassifier(seed=seed, **common)
    fitted = estimator.fit(assembled)
    files = _saved(fitted)
    if declared.kind == "logistic_regression":
        # Contributions are counted from the mean row, which MLlib does not keep.
        means = rows.agg(*[F.avg(name).alias(name) for name in features]).first()
        files[models.MEANS] = json.dumps({"means": list(means or ())}).encode()
    return files


def _saved(fitted: Any) -> dict[str, bytes]:
    """Let MLlib write its folder to HDFS, and read the folder's files."""
    folder = f"/user/{settings().hdfs_user}/models/{uuid.uuid4().hex}"
    try:
        fitted.write().save(settings().hdfs_uri + folder)
        files = {}
        for at, _, names in storage().walk(folder):
            for name in names:
                if not name.startswith(("_", ".")):
                    with storage().read(f"{at}/{name}") as reader:
                        files[str(PurePosixPath(at, name).relative_to(folder))] = reader.read()
        return files
    finally:
        storage().delete(folder, recursive=True)


# --- XGBoost ---------------------------------------------------------------------------------------------------------


def _fit_xgboost(rows: DataFrame, features: tuple[str, ...], declared: Declaration, seed: int, weight: float) -> dict[str, bytes]:
    ship(sys.modules[__name__])
    # A task that works alone may use the cores of the others.
    parameters = xgboost_parameters(declared, seed, threads=2 if declared.workers == 1 else 1)
    train = _trainer(features, parameters, declared.rounds, declared.workers, weight)
    trained = (
        rows.select(KEY, *features, LABEL).repartition(declared.workers, KEY).mapInArrow(train, "booster binary", barrier=True).first()
    )
    if trained is None:
        raise NothingToLearnError("XGBoost returned no model; look at bash/stack.sh logs loads")
    return {models.BOOSTER: bytes(trained[0])}


def xgboost_parameters(declared: Declaration, seed: int, threads: int) -> dict[str, Any]:
    """Return what is handed to XGBoost: the declared parameters, and what they leave open."""
    return {"objective": "binary:logistic", "seed": seed, "verbosity": 1, "nthread": threads, **declared.parameters}


def _trainer(
    features: tuple[str, ...], parameters: dict[str, Any], rounds: int, workers: int, weight: float
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return what each barrier task runs; the first of them returns the booster."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import numpy as np
        from pyspark import BarrierTaskContext

        collected = list(batches)
        if not collected:
            raise ValueError("a task has no training rows; declare fewer workers in ml/params.yaml")
        table = pa.Table.from_batches(collected).sort_by(KEY)
        label = table[LABEL].to_numpy()
        rows = np.stack([table[name].to_numpy() for name in features], axis=1).astype(np.float32, copy=False)
        weights = np.where(label == 1, weight, 1.0) if weight != 1 else None
        context = BarrierTaskContext.get()

        def train() -> bytes:
            return train_booster(rows, label, weights, parameters, rounds)

        booster = train() if workers == 1 else _together(context, workers, train)
        if context.partitionId() == 0:
            yield pa.RecordBatch.from_pydict({"booster": pa.array([booster], pa.binary())})

    return run


def train_booster(rows: Any, label: Any, weights: Any, parameters: dict[str, Any], rounds: int) -> bytes:
    """Train XGBoost on arrays; returns the booster as binary JSON."""
    import xgboost

    if parameters.get("tree_method") == "exact":
        data = xgboost.DMatrix(rows, label, weight=weights, nthread=parameters["nthread"])
    else:
        data = xgboost.QuantileDMatrix(rows, label, weight=weights, nthread=parameters["nthread"], max_bin=parameters.get("max_bin", 256))
    return bytes(xgboost.train(parameters, data, rounds).save_raw("ubj"))


def _together(context: Any, workers: int, train: Callable[[], bytes]) -> bytes:
    """Train with the other tasks: the first starts XGBoost's tracker and tells its address."""
    from xgboost.collective import CommunicatorContext
    from xgboost.tracker import RabitTracker

    tracker = None
    address: dict[str, Any] = {}
    if context.partitionId() == 0:
        host = context.getTaskInfos()[0].address.split(":")[0]
        tracker = RabitTracker(n_workers=workers, host_ip=host, sortby="task")
        tracker.start()
        address = tracker.worker_args()
    address = json.loads(context.allGather(json.dumps(address))[0])
    # The task's number is its rank: sums are taken in the same order each time.
    with CommunicatorContext(dmlc_task_id=f"{context.partitionId():06d}", **address):
        booster = train()
    if tracker is not None:
        tracker.wait_for()
    return booster
