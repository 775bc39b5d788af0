"""What a scoring task does with rows, and which days are looked at."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import xgboost

from ml import models
from ml.params import params
from ml.registry import Version
from ml.score import KEYS, days_filter, prediction_schema, scorer

CHAMPION = Version("card_fraud", 3, "file:///nowhere", "run", {})
NOW = dt.datetime(2018, 9, 1, 12, 0, 0, 5, tzinfo=dt.UTC)
FIELDS = {"amount": pa.float64(), "is_night": pa.int32(), "amount_rank": pa.float64()}


def grown(features: tuple[str, ...], rows: np.ndarray, label: np.ndarray, rounds: int, **parameters: float) -> models.Model:
    """A model of XGBoost's trees."""
    fixed = {"objective": "binary:logistic", "base_score": 0.5, "nthread": 1}
    raw = bytes(xgboost.train({**fixed, **parameters}, xgboost.DMatrix(rows, label), rounds).save_raw("ubj"))
    return models.load(models.describe(features, {"x": {models.BOOSTER: raw}}, {}))


def stump(features: tuple[str, ...]) -> models.Model:
    """Above 100 the transaction is fraud; at night a little more so."""
    amount = np.array([10, 20, 30, 40, 110, 120, 130, 140] * 20, np.float32)
    night = np.array([0, 1] * 80, np.float32)
    rows = np.stack([amount, night], axis=1)
    label = ((amount > 100) & (np.arange(160) % 16 != 0)).astype(int)
    return grown(features, rows, label, rounds=4, max_depth=2, eta=1)


def batch(rows: list[tuple[int, int, int, dt.datetime, Decimal, int]]) -> pa.RecordBatch:
    schema = pa.schema(
        [
            *((name, pa.int64()) for name in KEYS[:3]),
            ("transacted_at", pa.timestamp("us", "UTC")),
            ("amount", pa.decimal128(12, 2)),
            ("is_night", pa.int32()),
        ]
    )
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def at(hour: int) -> dt.datetime:
    return dt.datetime(2018, 8, 31, hour, tzinfo=dt.UTC)


def test_a_batch_of_rows_becomes_a_batch_of_predictions():
    model = stump(("amount", "is_night"))
    schema = prediction_schema(FIELDS)
    given = batch([(7, 1, 9, at(3), Decimal("150.00"), 1), (8, 2, 9, at(12), Decimal("12.34"), 0)])
    (predicted,) = scorer(model, CHAMPION, params(), NOW, schema)([given])
    assert predicted.schema == schema
    fraud, usual = predicted.to_pylist()
    assert [fraud[key] for key in KEYS] == [7, 1, 9, at(3), Decimal("150.00")]
    assert (fraud["model_name"], fraud["model_version"], fraud["scored_at"]) == ("card_fraud", 3, NOW)
    assert (fraud["risk_level"], fraud["is_fraud"]) == ("HIGH", True)
    assert (usual["risk_level"], usual["is_fraud"]) == ("LOW", False)
    assert fraud["fraud_probability"] > 0.8 > 0.2 > usual["fraud_probability"]
    # What the model does not read is null, what it reads is kept as it was read.
    assert fraud["features"] == {"amount": 150.0, "is_night": 1, "amount_rank": None}
    assert usual["features"] == {"amount": 12.34, "is_night": 0, "amount_rank": None}
    assert fraud["reasons"][0]["feature"] == "amount"
    assert fraud["reasons"][0]["contribution"] > 0 > usual["reasons"][-1]["contribution"]


def test_reasons_come_highest_first_and_every_row_of_a_small_model_has_them():
    model = stump(("amount", "is_night"))
    given = batch([(number, 1, 9, at(3), Decimal(number), number % 2) for number in range(1, 200)])
    (predicted,) = scorer(model, CHAMPION, params(), NOW, prediction_schema(FIELDS))([given])
    for row in predicted["reasons"].to_pylist():
        contributions = [reason["contribution"] for reason in row]
        assert len(row) == 2
        assert contributions == sorted(contributions, reverse=True)


def test_a_large_model_explains_only_the_levels_that_are_declared():
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 2)).astype(np.float32)
    label = (rows[:, 0] * rows[:, 1] > 1).astype(int)
    model = grown(("amount", "is_night"), rows, label, rounds=20, max_depth=8)
    given = batch([(number, 1, 9, at(3), Decimal(number % 5 - 2), number % 5 - 2) for number in range(50)])
    (predicted,) = scorer(model, CHAMPION, params(), NOW, prediction_schema(FIELDS))([given])
    kinds = {(row["risk_level"], len(row["reasons"])) for row in predicted.to_pylist()}
    assert kinds <= {("LOW", 0), ("MEDIUM", 2), ("HIGH", 2)}
    assert ("LOW", 0) in kinds


def test_an_empty_batch_gives_an_empty_batch():
    (predicted,) = scorer(stump(("amount", "is_night")), CHAMPION, params(), NOW, prediction_schema(FIELDS))([batch([])])
    assert predicted.num_rows == 0


def test_neighbouring_days_become_one_range():
    days = (dt.date(2018, 8, 2), dt.date(2018, 8, 1), dt.date(2018, 12, 31))
    assert days_filter("at", days) == (
        "(at >= TIMESTAMP '2018-08-01' AND at < TIMESTAMP '2018-08-03') OR (at >= TIMESTAMP '2018-12-31' AND at < TIMESTAMP '2019-01-01')"
    )
    assert days_filter("at", ()) == "false"
