"""The champion as the stream scores by it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ml import features, models, registry
from ml.params import params
from ml.score import FeaturesDifferError, prediction_schema, scorer


class Champion:
    """A version of the model, ready to score.

    Raises
    ------
    FeaturesDifferError
        When it reads features that this code does not compute.
    """

    def __init__(self, version: registry.Version) -> None:
        self.version = version
        self.model = models.load(registry.read_files(version))
        if missing := [name for name in self.model.features if name not in features.FEATURE_NAMES]:
            raise FeaturesDifferError(
                f"the champion, {version}, reads {', '.join(missing)}, which this code does not compute; deploy the champion's commit"
            )
        types = {feature.name: feature.arrow_type for feature in features.FEATURES if feature.name in self.model.features}
        self.schema = prediction_schema(types)

    def score(self, rows: Mapping[str, np.ndarray[Any, Any]], scored_at: dt.datetime) -> pa.RecordBatch:
        """Return predictions, columns as in `mart.predictions`, of feature rows (`FEATURE_SCHEMA` as arrays), in their order."""
        names = dict.fromkeys(("transaction_id", "customer_id", "terminal_id", *self.model.features))
        columns = {name: pa.array(rows[name]) for name in names}
        columns["transacted_at"] = pa.array(rows["transacted_at"]).cast(pa.timestamp("us", "UTC"))
        # As in the table of features: a double of whole cents is those cents.
        columns["amount"] = pa.array(np.round(rows["amount"], 2)).cast(pa.decimal128(12, 2))
        run = scorer(self.model, self.version, params(), scored_at, self.schema)
        (scored,) = run([pa.RecordBatch.from_pydict(columns)])
        return scored


def newer(present: Champion | None) -> Champion | None:
    """Return the registry's champion, the present one itself where it is that; None where there is none."""
    version = registry.champion()
    if version is None:
        return None
    if present is not None and (present.version.name, present.version.version) == (version.name, version.version):
        return present
    return Champion(version)
