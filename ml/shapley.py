"""Exact SHAP values of small XGBoost trees by table: what TreeSHAP gives, at the cost of a few look-ups a row.

The path-dependent SHAP values of a row in a tree depend only on how the tree's comparisons come out. A tree of depth 3
has at most seven of them, so its values are worked out once for each of the 128 outcomes and looked up for each row.
A tree of depth 4 is two such tables, one for each side of its root: SHAP values add up over leaves.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etl.errors import WarehouseError

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Leaf = tuple[int, tuple[tuple[int, bool], ...]]
"""A leaf's node, and the way to it from the root: each comparing node, and whether its comparison holds."""

MAX_DEPTH = 4
"""Comparisons on the way to a leaf up to which trees are tabulated."""

_MAX_COMPARISONS = 8
"""Comparisons of one table: their outcomes fit a byte, 256 of them."""

_CHUNK_ROWS = 32_768
"""Rows at a time, so that columns and sums stay in the processor's cache."""


class ShapleyError(WarehouseError):
    """A model or its rows are not of the kind whose SHAP values can be looked up."""


@dataclass(frozen=True, eq=False)
class TreeTable:
    """SHAP values of a tree, or of one side of it, for every way in which its comparisons can come out.

    Attributes
    ----------
    comparisons
        Feature and threshold of each; `row[feature] < threshold` is bit 0, 1, ... of the outcome.
    features
        Features that are compared, ascending.
    values
        Shape (features, 2 ** comparisons), in the unit of the model's margin.
    """

    comparisons: tuple[tuple[int, np.float32], ...]
    features: tuple[int, ...]
    values: Matrix


@dataclass(frozen=True, eq=False)
class Tables:
    """SHAP values of an ensemble of trees.

    Attributes
    ----------
    features
        Names of the model's features, in its order.
    trees
        One table or two for each tree that compares anything.
    base
        Mean margin in training, `base_score` included: a row's contributions and this sum to its margin.
    """

    features: tuple[str, ...]
    trees: tuple[TreeTable, ...]
    base: float


def tables(booster: Any) -> Tables:
    """Work out the path-dependent SHAP values of every tree of a booster.

    What a set of known features tells is the mean of the leaves that they leave open, the sides of an unknown comparison
    weighing as in training. A feature's value is what knowing it adds, averaged over the orders of learning them.

    Parameters
    ----------
    booster
        `xgboost.Booster` of numeric features, one output and trees of at most `MAX_DEPTH` comparisons in a row.

    Raises
    ------
    ShapleyError
        When it is another kind of model, splits by category, lacks its cover, or has a deeper tree;
        `predict(pred_contribs=True)` explains the deeper ones.

    References
    ----------
    Lundberg, Erion and Lee (2018), "Consistent individualized feature attribution for tree ensembles", arXiv:1802.03888;
    Lundberg et al. (2020), "From local explanations to global understanding with explainable AI for trees", Nature
    Machine Intelligence 2, 56-67: TreeSHAP, `feature_perturbation="tree_path_dependent"`.
    """
    import xgboost

    learner = json.loads(booster.save_raw("json"))["learner"]
    kind, outputs = learner["gradient_booster"]["name"], learner["learner_model_param"]
    if kind != "gbtree":
        raise ShapleyError(f"a booster of kind {kind} has no SHAP tables, only gbtree has; explain it with pred_contribs")
    if max(int(outputs["num_class"]), int(outputs["num_target"])) > 1:
        raise ShapleyError("a booster of several classes or targets has no SHAP tables; explain it with pred_contribs")
    trees = learner["gradient_booster"]["model"]["trees"]
    for number, tree in enumerate(trees):
        _check(number, tree)

    width = int(outputs["num_feature"])
    # The booster's own word for the base: how base_score becomes a margin depends on the objective.
    told = booster.predict(xgboost.DMatrix(np.zeros((1, width), np.float32), nthread=1), pred_contribs=True, validate_features=False)
    return Tables(
        tuple(booster.feature_names or (f"f{number}" for number in range(width))),
        tuple(_table(tree, leaves) for tree in trees for leaves in _branches(tree, 0, ()) if leaves[0][1]),
        float(told[0, -1]),
    )


def contributions(tables: Tables, rows: npt.ArrayLike) -> Matrix:
    """Look the SHAP values of rows up.

    Parameters
    ----------
    tables
        Of the model that is explained.
    rows
        Shape (rows, features), without NaN. Compared as 32-bit floats, as XGBoost does.

    Returns
    -------
    numpy.ndarray
        Shape (rows, features), in the unit of the model's margin (log-odds of a logistic one); a row's values and
        `tables.base` sum to its margin.

    Raises
    ------
    ShapleyError
        When the rows have other columns than the model, or NaN in one.
    """
    rows = np.asarray(rows, np.float32)
    width = len(tables.features)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ShapleyError(f"rows of shape {rows.shape} cannot be explained by a model of {width} features; give it shape (rows, {width})")
    result = np.empty(rows.shape, np.float32)
    for begin in range(0, len(rows), _CHUNK_ROWS):
        columns = np.ascontiguousarray(rows[begin : begin + _CHUNK_ROWS].T)
        missing = np.isnan(columns).any(axis=1)
        if missing.any():
            names = ", ".join(tables.features[number] for number in np.flatnonzero(missing))
            raise ShapleyError(f"rows have NaN in {names}; give them the value that means none (ml/features.py leaves no holes)")
        total = np.zeros(columns.shape, np.float32)
        for tree in tables.trees:
            outcome = np.zeros(columns.shape[1], np.uint8)
            for bit, (feature, threshold) in enumerate(tree.comparisons):
                outcome |= (columns[feature] < threshold).view(np.uint8) << np.uint8(bit)
            index = outcome.astype(np.intp)
            for feature, values in zip(tree.features, tree.values, strict=True):
                total[feature] += values.take(index)
        result[begin : begin + _CHUNK_ROWS] = total.T
    return result


def top(contributions: npt.ArrayLike, count: int) -> npt.NDArray[np.intp]:
    """Find the features that speak most for fraud.

    Parameters
    ----------
    contributions
        Shape (rows, features).
    count
        How many features of each row, at least 1 and at most all.

    Returns
    -------
    numpy.ndarray
        Shape (rows, count): the features' numbers by contribution, greatest first; of equal ones the first feature goes
        first. Where fewer than `count` contributions are positive, the least negative follow.

    Raises
    ------
    ShapleyError
        When there are not that many features.
    """
    values = np.asarray(contributions)
    if values.ndim != 2 or not 1 <= count <= values.shape[1]:
        raise ShapleyError(f"contributions of shape {values.shape} have no top {count}; ask for 1 up to the number of features")
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


# --- one tree, as XGBoost writes it in JSON --------------------------------------------------------------------------


def _check(number: int, tree: Mapping[str, Any]) -> None:
    if any(tree["split_type"]):
        raise ShapleyError(f"tree {number} splits by category and has no SHAP table; encode the feature as numbers, or use pred_contribs")
    left, right, cover = tree["left_children"], tree["right_children"], tree["sum_hessian"]
    if any(below >= 0 and cover[below] + cover[above] <= 0 for below, above in zip(left, right, strict=True)):
        raise ShapleyError(f"tree {number} says nothing of how many rows went where (sum_hessian is 0); train the model again")
    level = [0]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level if left[node] >= 0 for child in (left[node], right[node])]
    if level:
        raise ShapleyError(
            f"tree {number} is deeper than {MAX_DEPTH} and has no SHAP table; train with a lower max_depth, or use pred_contribs"
        )


def _branches(tree: Mapping[str, Any], node: int, path: tuple[tuple[int, bool], ...]) -> Iterator[list[Leaf]]:
    """Cut a tree where needed, so that the leaves of each part hang on no more comparisons than a table holds."""
    leaves = list(_leaves(tree, node, path))
    if len({split for _, way in leaves for split, _ in way}) <= _MAX_COMPARISONS:
        yield leaves
    else:
        yield from _branches(tree, tree["left_children"][node], (*path, (node, True)))
        yield from _branches(tree, tree["right_children"][node], (*path, (node, False)))


def _leaves(tree: Mapping[str, Any], node: int, path: tuple[tuple[int, bool], ...]) -> Iterator[Leaf]:
    if tree["left_children"][node] < 0:
        yield node, path
    else:
        yield from _leaves(tree, tree["left_children"][node], (*path, (node, True)))
        yield from _leaves(tree, tree["right_children"][node], (*path, (node, False)))


def _table(tree: Mapping[str, Any], leaves: list[Leaf]) -> TreeTable:
    cover, condition, compared = tree["sum_hessian"], tree["split_conditions"], tree["split_indices"]
    splits = sorted({split for _, path in leaves for split, _ in path})
    features = sorted({compared[split] for split in splits})
    outcomes = np.arange(1 << len(splits))
    is_below = {split: (outcomes >> bit & 1).astype(np.bool_) for bit, split in enumerate(splits)}
    values = np.zeros((len(features), len(outcomes)))
    for leaf, path in leaves:
        # Of each feature on the way: whether a row's value leads to the leaf, and how much of training it led there.
        leads: dict[int, Floats] = {}
        share: dict[int, float] = {}
        for split, is_left in path:
            sides = (tree["left_children"][split], tree["right_children"][split])
            taken = cover[sides[0] if is_left else sides[1]] / (cover[sides[0]] + cover[sides[1]])
            feature = compared[split]
            leads[feature] = leads.get(feature, 1.0) * (is_below[split] == is_left).astype(np.float64)
            share[feature] = share.get(feature, 1.0) * taken
        for feature in leads:
            values[features.index(feature)] += condition[leaf] * _gain(feature, leads, share)
    return TreeTable(tuple((compared[split], np.float32(condition[split])) for split in splits), tuple(features), values.astype(np.float32))


def _gain(feature: int, leads: Mapping[int, Floats], share: Mapping[int, float]) -> Floats:
    """Shapley value of one feature for arriving at a leaf, for each outcome.

    The chance of arriving is a product over features: 0 or 1 of a known one, its share of training of an unknown one.
    """
    others = [other for other in leads if other != feature]
    chance = np.zeros(len(leads[feature]))
    for size in range(len(others) + 1):
        weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(leads))
        for known in itertools.combinations(others, size):
            arriving: Floats | float = weight
            for other in others:
                arriving = arriving * (leads[other] if other in known else share[other])
            chance += arriving
    return chance * (leads[feature] - share[feature])
