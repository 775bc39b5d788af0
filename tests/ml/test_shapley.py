"""SHAP values by table: literal trees, XGBoost's own values, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import xgboost

from ml import shapley
from ml.shapley import ShapleyError, contributions, tables, top

LOGISTIC = {"objective": "binary:logistic", "tree_method": "hist", "eta": 0.3, "nthread": 1}


def data(seed: int, rows: int = 400, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Random rows whose label hangs on several features together; few distinct values in one, so rows meet thresholds."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, width)).astype(np.float32)
    x[:, 0] = random.integers(0, 4, rows)
    y = (x[:, 0] * x[:, 1] + np.abs(x[:, 2]) - x[:, 3] + random.normal(size=rows) > 1).astype(np.int64)
    return x, y


def boosted(seed: int, depth: int = 3, rounds: int = 8, **parameters: Any) -> tuple[xgboost.Booster, np.ndarray]:
    x, y = data(seed)
    settings = {**LOGISTIC, "max_depth": depth, "min_child_weight": 0, **parameters}
    return xgboost.train(settings, xgboost.DMatrix(x, y, nthread=1), rounds), x


def told(booster: xgboost.Booster, x: np.ndarray) -> np.ndarray:
    return booster.predict(xgboost.DMatrix(x, nthread=1), pred_contribs=True)


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_single_comparison_is_shared_out_by_cover():
    x = np.array([[0.0], [0.0], [0.0], [1.0]], np.float32)
    y = np.array([0.0, 0.0, 0.0, 4.0])
    settings = {
        "objective": "reg:squarederror",
        "tree_method": "exact",
        "max_depth": 1,
        "eta": 1,
        "lambda": 0,
        "base_score": 0,
        "nthread": 1,
    }
    found = tables(xgboost.train(settings, xgboost.DMatrix(x, y, nthread=1), 1))
    (tree,) = found.trees
    assert (tree.comparisons, tree.features) == (((0, np.float32(0.5)),), (0,))
    # Three rows of four are below and worth 0, one is above and worth 4: the mean is 1.
    assert found.base == 1.0
    assert contributions(found, x)[:, 0].tolist() == [-1.0, -1.0, -1.0, 3.0]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contributions_equal_those_of_xgboost(seed: int, depth: int):
    booster, x = boosted(seed, depth)
    found = tables(booster)
    expected = told(booster, x)
    assert np.abs(contributions(found, x) - expected[:, :-1]).max() < 1e-5
    assert found.base == pytest.approx(expected[0, -1], abs=1e-5)


@pytest.mark.parametrize("parameters", [{"base_score": 0.5}, {"base_score": 0.01}, {}, {"objective": "reg:squarederror"}])
def test_contributions_and_base_sum_to_the_margin(parameters: dict[str, Any]):
    booster, x = boosted(3, 3, **parameters)
    found = tables(booster)
    margin = booster.inplace_predict(x, predict_type="margin")
    assert np.abs(contributions(found, x).sum(axis=1) + found.base - margin).max() < 1e-5


def test_a_full_tree_of_depth_4_is_two_tables_of_a_byte_each():
    booster, _ = boosted(0, 4, rounds=1)
    found = tables(booster)
    assert len(found.trees) == 2
    assert all(len(tree.comparisons) <= 8 and tree.values.shape[1] <= 256 for tree in found.trees)


def test_rows_on_a_threshold_and_the_float_beside_it_go_where_xgboost_sends_them():
    booster, x = boosted(4)
    found = tables(booster)
    edges = []
    for tree in found.trees:
        for feature, threshold in tree.comparisons:
            for value in (threshold, np.nextafter(threshold, np.float32(-np.inf)), np.nextafter(threshold, np.float32(np.inf))):
                row = x[0].copy()
                row[feature] = value
                edges.append(row)
    edges = np.array(edges)
    assert np.abs(contributions(found, edges) - told(booster, edges)[:, :-1]).max() < 1e-5


def test_doubles_are_compared_as_the_32_bit_floats_that_xgboost_makes_of_them():
    booster, x = boosted(5)
    found = tables(booster)
    feature, threshold = found.trees[0].comparisons[0]
    row = x[:1].astype(np.float64)
    row[0, feature] = np.nextafter(np.float64(threshold), -np.inf)
    rounded = row.astype(np.float32)
    assert rounded[0, feature] == threshold
    assert contributions(found, row).tolist() == contributions(found, rounded).tolist()
    assert np.abs(contributions(found, row) - told(booster, row)[:, :-1]).max() < 1e-5


def test_trees_that_compare_nothing_contribute_nothing():
    booster, x = boosted(0, 3, gamma=1e9)
    found = tables(booster)
    assert found.trees == ()
    assert not contributions(found, x).any()
    assert found.base == pytest.approx(float(booster.inplace_predict(x, predict_type="margin")[0]), abs=1e-6)


def test_chunks_change_nothing(monkeypatch):
    booster, x = boosted(1)
    found = tables(booster)
    whole = contributions(found, x)
    monkeypatch.setattr(shapley, "_CHUNK_ROWS", 7)
    assert np.array_equal(contributions(found, x), whole)
    assert contributions(found, x[:0]).shape == (0, 6)


# --- the greatest ----------------------------------------------------------------------------------------------------


def test_top_names_the_greatest_first_and_of_equals_the_first_feature():
    rows = np.array([[0.1, 0.5, -0.9, 0.3], [0.2, 0.2, 0.2, 0.1], [-0.4, -0.1, -0.2, -0.1]], np.float32)
    assert top(rows, 3).tolist() == [[1, 3, 0], [0, 1, 2], [1, 3, 2]]


def test_top_is_in_order_and_leaves_out_nothing_greater():
    rows = np.random.default_rng(0).integers(-3, 4, (500, 7))
    for row, best in zip(rows, top(rows, 4), strict=True):
        assert all((row[a], -a) > (row[b], -b) for a, b in pairwise(best))
        assert all((row[best[-1]], -best[-1]) > (row[other], -other) for other in set(range(7)) - set(best.tolist()))
    assert top(rows[:0], 2).shape == (0, 2)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_deeper_trees_are_refused():
    booster, _ = boosted(0, 5)
    with pytest.raises(ShapleyError, match=r"tree 0 is deeper than 4 .* pred_contribs"):
        tables(booster)


def test_trees_without_cover_are_refused():
    booster, _ = boosted(0, 2)
    model = json.loads(booster.save_raw("json"))
    tree = model["learner"]["gradient_booster"]["model"]["trees"][1]
    tree["sum_hessian"] = [0.0] * len(tree["sum_hessian"])
    booster.load_model(bytearray(json.dumps(model).encode()))
    with pytest.raises(ShapleyError, match="tree 1 says nothing"):
        tables(booster)


def test_splits_by_category_are_refused():
    x, _ = data(0)
    rows = xgboost.DMatrix(x[:, :1], x[:, 0] == 2, feature_types=["c"], enable_categorical=True, nthread=1)
    booster = xgboost.train({**LOGISTIC, "max_depth": 2}, rows, 1)
    with pytest.raises(ShapleyError, match="tree 0 splits by category"):
        tables(booster)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"booster": "gblinear"}, "kind gblinear"),
        ({"booster": "dart"}, "kind dart"),
        ({"objective": "multi:softprob", "num_class": 2}, "several classes"),
    ],
)
def test_other_boosters_are_refused(parameters: dict[str, Any], message: str):
    x, y = data(0)
    settings = {"objective": "binary:logistic", "nthread": 1, **parameters}
    booster = xgboost.train(settings, xgboost.DMatrix(x, y, nthread=1), 1)
    with pytest.raises(ShapleyError, match=message):
        tables(booster)


def test_nan_is_refused_by_the_features_name():
    x, y = data(0)
    names = ["amount", "hour", "share", "mean", "count", "days"]
    booster = xgboost.train({**LOGISTIC, "max_depth": 2}, xgboost.DMatrix(x, y, feature_names=names, nthread=1), 2)
    x[3, 2] = x[5, 4] = np.nan
    with pytest.raises(ShapleyError, match="NaN in share, count;"):
        contributions(tables(booster), x)
    unnamed, _ = boosted(0)
    with pytest.raises(ShapleyError, match="NaN in f2, f4;"):
        contributions(tables(unnamed), x)


def test_rows_of_another_shape_are_refused():
    booster, x = boosted(0)
    found = tables(booster)
    for rows in (x[:, :5], x[0], np.zeros((2, 7), np.float32)):
        with pytest.raises(ShapleyError, match="of 6 features"):
            contributions(found, rows)


@pytest.mark.parametrize("count", [0, 7])
def test_more_reasons_than_features_are_refused(count: int):
    with pytest.raises(ShapleyError, match=f"no top {count};"):
        top(np.zeros((3, 6), np.float32), count)
