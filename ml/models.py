"""A trained model as plain files, and one engine that predicts with it and explains it.

The files are what the libraries wrote: MLlib's folders, XGBoost's binary JSON. Nothing in them is run: the class that
MLlib's metadata names is looked up in an allow-list and only chooses how its numbers are read. Forests of MLlib become
boosters of XGBoost, so that one engine serves batches, the stream and explanations, without a JVM.

Both training and prediction see features as 32-bit floats. That makes the change of engine exact where it decides: for
such a value x and a 64-bit threshold t, `x <= t` (MLlib) holds if and only if `x < t'` (XGBoost), t' being the lowest
32-bit float above t.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from etl.errors import WarehouseError
from ml import shapley
from ml.shapley import Floats, Matrix

Files = Mapping[str, bytes]
"""Contents by path relative to the model's folder."""

DESCRIPTION = "model.json"
BOOSTER = "booster.ubj"
MEANS = "means.json"
FORMAT = 1

MLLIB_CLASSES = {
    "org.apache.spark.ml.classification.LogisticRegressionModel": "logistic_regression",
    "org.apache.spark.ml.classification.RandomForestClassificationModel": "random_forest",
    "org.apache.spark.ml.classification.GBTClassificationModel": "gradient_boosted_trees",
}
"""MLlib's classes whose numbers are read; any other is refused."""

MLLIB_TREES = {
    "random_forest": "org.apache.spark.ml.classification.DecisionTreeClassificationModel",
    "gradient_boosted_trees": "org.apache.spark.ml.regression.DecisionTreeRegressionModel",
}


class ModelFilesError(WarehouseError):
    """A model's files are not what they should be; nothing in them was run."""


@dataclass
class Trees:
    """An ensemble of trees in XGBoost's form.

    Attributes
    ----------
    raw
        The booster as binary JSON.
    is_logistic
        Whether the trees sum up to log-odds; otherwise to the probability itself.
    """

    raw: bytes
    is_logistic: bool
    _booster: Any = field(default=None, repr=False, compare=False)
    _tables: shapley.Tables | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # The tables travel to the workers, the booster is made there.
        return {"raw": self.raw, "is_logistic": self.is_logistic, "_booster": None, "_tables": self._tables}

    @property
    def booster(self) -> Any:
        """The booster, made once in each process, of one thread: callers run side by side."""
        if self._booster is None:
            import xgboost

            self._booster = xgboost.Booster({"nthread": 1})
            self._booster.load_model(bytearray(self.raw))
            self._booster.set_param({"nthread": 1})
        return self._booster

    def prepare(self) -> bool:
        """Work out the SHAP tables, if the trees are small enough; tells whether SHAP values of every row are affordable."""
        if self._tables is None:
            try:
                self._tables = shapley.tables(self.booster)
            except shapley.ShapleyError:
                # Deeper trees: XGBoost's own algorithm explains the rows that are worth it.
                return False
        return True

    def probability(self, rows: Matrix) -> Floats:
        """Probability of fraud, shape (rows,)."""
        total = self.booster.inplace_predict(rows, predict_type="margin").astype(np.float64)
        return _sigmoid(total) if self.is_logistic else np.clip(total, 0.0, 1.0)

    def contributions(self, rows: Matrix) -> Floats:
        """SHAP values in probability, shape (rows, features); a row sums to its probability less the mean one."""
        if self._tables is not None:
            values, base = shapley.contributions(self._tables, rows).astype(np.float64), np.full(len(rows), self._tables.base)
        else:
            import xgboost

            told = self.booster.predict(xgboost.DMatrix(rows, nthread=1), pred_contribs=True).astype(np.float64)
            values, base = told[:, :-1], told[:, -1]
        return _in_probability(values, base) if self.is_logistic else values


@dataclass
class Linear:
    """A logistic regression.

    Attributes
    ----------
    coefficients
        Shape (features,).
    means
        Means of the features in training, shape (features,): contributions are counted from there.
    """

    coefficients: Floats
    intercept: float
    means: Floats

    def prepare(self) -> bool:
        """Tell that SHAP values of every row are affordable."""
        return True

    def probability(self, rows: Matrix) -> Floats:
        """Probability of fraud, shape (rows,)."""
        # Column by column: a product of matrices may sum in another order on another machine.
        total = np.full(len(rows), self.intercept)
        for column, coefficient in enumerate(self.coefficients):
            total += rows[:, column].astype(np.float64) * coefficient
        return _sigmoid(total)

    def contributions(self, rows: Matrix) -> Floats:
        """SHAP values (of independent features) in probability, shape (rows, features)."""
        values = (rows.astype(np.float64) - self.means) * self.coefficients
        return _in_probability(values, np.full(len(rows), self.intercept + float(self.means @ self.coefficients)))


def _sigmoid(log_odds: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -700, 700)))


def _in_probability(values: Floats, base: Floats) -> Floats:
    """Scale contributions to log-odds so that they add up to the difference in probability.

    Log-odds and probability rise together, so signs and order stay.
    """
    total = values.sum(axis=1)
    rise = _sigmoid(base + total) - _sigmoid(base)
    scale = np.divide(rise, total, out=np.zeros_like(total), where=np.abs(total) > 1e-12)
    return values * scale[:, None]


@dataclass
class Model:
    """What predicts: one part, or the mean of several.

    Attributes
    ----------
    features
        Columns that the parts read, in this order.
    parts
        Each of the same features.
    description
        What `model.json` says: name, parameters, thresholds.
    """

    features: tuple[str, ...]
    parts: tuple[Trees | Linear, ...]
    description: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> bool:
        """Prepare for explanations; tells whether SHAP values of every row are affordable."""
        prepared = [part.prepare() for part in self.parts]
        return all(prepared)

    def probability(self, rows: Matrix) -> Floats:
        """Probability of fraud.

        Parameters
        ----------
        rows
            Features as 32-bit floats, shape (rows, features).

        Returns
        -------
        numpy.ndarray
            Shape (rows,), between 0 and 1.
        """
        return np.mean([part.probability(rows) for part in self.parts], axis=0) if len(rows) else np.empty(0)

    def contributions(self, rows: Matrix) -> Floats:
        """SHAP values of each feature, in probability, shape (rows, features)."""
        if not len(rows):
            return np.empty((0, len(self.features)))
        return np.mean([part.contributions(rows) for part in self.parts], axis=0)


def matrix(columns: Mapping[str, npt.NDArray[Any]], features: tuple[str, ...]) -> Matrix:
    """Columns as the engine reads them: 32-bit floats, shape (rows, features)."""
    result = np.empty((len(columns[features[0]]), len(features)), np.float32)
    for number, name in enumerate(features):
        result[:, number] = columns[name]
    return result


# --- files -----------------------------------------------------------------------------------------------------------


def describe(features: tuple[str, ...], parts: Mapping[str, Files], description: Mapping[str, object]) -> dict[str, bytes]:
    """Put the files of a model together.

    Parameters
    ----------
    features
        What the model reads.
    parts
        Files of each part, by the part's name.
    description
        Anything to keep beside them, as JSON.
    """
    text = json.dumps({**description, "format": FORMAT, "features": features, "parts": list(parts)}, indent=1, sort_keys=True)
    return {DESCRIPTION: text.encode(), **{f"{name}/{path}": content for name, files in parts.items() for path, content in files.items()}}


def load(files: Files) -> Model:
    """Read a model from its files, running nothing that they name.

    Raises
    ------
    ModelFilesError
        When a file is missing or of a kind that is not read.
    """
    try:
        description = json.loads(files[DESCRIPTION])
    except KeyError:
        raise ModelFilesError(f"a model's files lack {DESCRIPTION}; train it again with bash/train.sh") from None
    if description.get("format") != FORMAT:
        raise ModelFilesError(f"the model is of format {description.get('format')}, not {FORMAT}; train it again with bash/train.sh")
    features = tuple(description["features"])
    parts = tuple(_load_part(name, below(files, name), len(features)) for name in description["parts"])
    return Model(features, parts, description)


def below(files: Files, folder: str) -> dict[str, bytes]:
    """Return the files of a folder, by path relative to it."""
    return {path.removeprefix(folder + "/"): content for path, content in files.items() if path.startswith(folder + "/")}


def _load_part(name: str, files: Files, features: int) -> Trees | Linear:
    if BOOSTER in files:
        return Trees(files[BOOSTER], is_logistic=True)
    if any(path.startswith("metadata/") for path in files):
        return _load_mllib(name, files, features)
    raise ModelFilesError(f"part {name} of a model has neither {BOOSTER} nor MLlib's metadata; nothing else is read")


def _lines(files: Files, folder: str) -> list[str]:
    text = b"".join(content for path, content in sorted(files.items()) if path.startswith(f"{folder}/part-"))
    return [line for line in text.decode().splitlines() if line.strip()]


def _load_mllib(name: str, files: Files, features: int) -> Trees | Linear:
    lines = _lines(files, "metadata")
    if len(lines) != 1:
        raise ModelFilesError(f"part {name} of a model: MLlib's metadata has {len(lines)} lines instead of 1")
    named = json.loads(lines[0]).get("class")
    kind = MLLIB_CLASSES.get(named)
    if kind is None:
        raise ModelFilesError(f"part {name} of a model names the class {named}; read are only {', '.join(sorted(MLLIB_CLASSES))}")
    if kind == "logistic_regression":
        return _load_linear(files)
    return _load_ensemble(files, features, kind)


def _rows(files: Files, folder: str) -> list[dict[str, Any]]:
    """Rows of the Parquet files of a folder."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path, content in sorted(files.items()):
        if path.startswith(f"{folder}/part-") and path.endswith(".parquet"):
            rows += pq.read_table(io.BytesIO(content)).to_pylist()
    if not rows:
        raise ModelFilesError(f"MLlib's model has no rows in {folder}/")
    return rows


def _dense(vector: Mapping[str, Any]) -> Floats:
    """A vector of MLlib, dense (type 1) or sparse (type 0)."""
    if vector["type"] == 1:
        return np.array(vector["values"], np.float64)
    values = np.zeros(vector["size"])
    values[np.array(vector["indices"], np.int64)] = vector["values"]
    return values


def _load_linear(files: Files) -> Linear:
    (row,) = _rows(files, "data")
    coefficients = row["coefficientMatrix"]
    values = np.array(coefficients["values"], np.float64)
    if coefficients["type"] != 1:
        # Sparse by column (or by row where transposed) with one row: the places stand in one of the two lists.
        places = np.array(coefficients["rowIndices"], np.int64)
        if not coefficients["isTransposed"]:
            places = np.repeat(np.arange(coefficients["numCols"]), np.diff(coefficients["colPtrs"]))
        dense = np.zeros(coefficients["numCols"])
        dense[places] = values
        values = dense
    means = json.loads(files[MEANS])["means"]
    return Linear(values, float(_dense(row["interceptVector"])[0]), np.array(means, np.float64))


def _load_ensemble(files: Files, features: int, kind: str) -> Trees:
    """Turn MLlib's nodes into a booster of XGBoost.

    A forest's leaf gives the share of frauds in it, divided by the number of trees; a boosted tree's leaf twice its
    weighted prediction, MLlib's loss being log(1 + exp(-2 y margin)).
    """
    is_boosted = kind == "gradient_boosted_trees"
    weights: dict[int, float] = {}
    for row in _rows(files, "treesMetadata"):
        named = json.loads(row["_2"]).get("class")
        if named != MLLIB_TREES[kind]:
            raise ModelFilesError(f"a tree of a model names the class {named}; read is only {MLLIB_TREES[kind]}")
        weights[row["_1"]] = row["_3"]
    nodes: dict[int, list[dict[str, Any]]] = {tree: [] for tree in weights}
    for row in _rows(files, "data"):
        nodes[row["treeID"]].append(row["nodeData"])
    total = sum(weights.values())
    trees = [
        _tree(nodes[tree], features, 2.0 * weights[tree] if is_boosted else weights[tree] / total, is_boosted) for tree in sorted(nodes)
    ]
    return Trees(booster_of(trees, features, "binary:logistic" if is_boosted else "reg:squarederror"), is_logistic=is_boosted)


def float_above(threshold: Floats) -> Matrix:
    """Return the lowest 32-bit float above each 64-bit threshold: for a 32-bit x, x <= threshold if x is below it."""
    nearest = threshold.astype(np.float32)
    return np.where(nearest.astype(np.float64) > threshold, nearest, np.nextafter(nearest, np.float32(np.inf)))


def _tree(given: list[dict[str, Any]], features: int, scale: float, is_boosted: bool) -> dict[str, Any]:
    """One tree as XGBoost writes it."""
    nodes, left = _side_by_side(given)
    right = np.where(left < 0, -1, left + 1)
    is_leaf = left < 0
    if any(not is_leaf[number] and node["split"]["numCategories"] >= 0 for number, node in enumerate(nodes)):
        raise ModelFilesError("a tree splits by category; features are numbers")
    threshold = np.array([0.0 if is_leaf[number] else node["split"]["leftCategoriesOrThreshold"][0] for number, node in enumerate(nodes)])
    stats = np.array([node["impurityStats"] for node in nodes], np.float64)
    if is_boosted:
        # Of the variance MLlib keeps the count and two sums.
        value, cover = np.array([node["prediction"] for node in nodes], np.float64), stats[:, 0]
    else:
        # Of each class its weight.
        cover = stats.sum(axis=1)
        value = np.divide(stats[:, 1], cover, out=np.zeros(len(nodes)), where=cover > 0)
    value = value * scale
    parents = np.full(len(nodes), 2**31 - 1)
    inner = np.flatnonzero(~is_leaf)
    parents[left[inner]] = inner
    parents[right[inner]] = inner
    nothing = [0] * len(nodes)
    return {
        "base_weights": value.tolist(),
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": nothing,
        "id": 0,
        "left_children": left.tolist(),
        "loss_changes": [0.0] * len(nodes),
        "parents": parents.tolist(),
        "right_children": right.tolist(),
        "split_conditions": np.where(is_leaf, value, float_above(threshold)).tolist(),
        "split_indices": [0 if is_leaf[number] else node["split"]["featureIndex"] for number, node in enumerate(nodes)],
        "split_type": nothing,
        "sum_hessian": cover.tolist(),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(len(nodes)),
            "size_leaf_vector": "1",
        },
    }


def _side_by_side(given: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], npt.NDArray[np.int64]]:
    """Number the nodes of a tree anew, level by level: XGBoost takes the node after the left child for the right one.

    Returns
    -------
    nodes
        In their new order, the root first.
    left
        New number of each node's left child, -1 for a leaf.
    """
    by_id = {node["id"]: node for node in given}
    nodes = [by_id[0]]
    left: list[int] = []
    for node in nodes:
        if node["leftChild"] < 0:
            left.append(-1)
            continue
        left.append(len(nodes))
        nodes += [by_id[node["leftChild"]], by_id[node["rightChild"]]]
        if len(nodes) > len(given):
            raise ModelFilesError("a tree's nodes run in a circle; train the model again with bash/train.sh")
    return nodes, np.array(left)


def booster_of(trees: list[dict[str, Any]], features: int, objective: str) -> bytes:
    """A booster made of given trees, as binary JSON; its margin is the plain sum of their leaves.

    The frame comes from a booster of one round, so that it is always in the form of the installed XGBoost.
    """
    import xgboost

    data = xgboost.DMatrix(np.zeros((2, features), np.float32), np.array([0.0, 1.0]))
    # A base score of 0 in the margin: 0 itself, or the probability one half.
    start = 0.5 if objective == "binary:logistic" else 0.0
    parameters: dict[str, Any] = {"objective": objective, "base_score": start, "max_depth": 1, "nthread": 1}
    frame = json.loads(xgboost.train(parameters, data, 1).save_raw("json"))
    model = frame["learner"]["gradient_booster"]["model"]
    model["trees"] = [{**tree, "id": number} for number, tree in enumerate(trees)]
    model["tree_info"] = [0] * len(trees)
    model["iteration_indptr"] = list(range(len(trees) + 1))
    model["gbtree_model_param"] |= {"num_trees": str(len(trees))}
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(json.dumps(frame).encode()))
    return bytes(booster.save_raw("ubj"))
