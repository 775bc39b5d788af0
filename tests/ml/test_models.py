"""A model's files: read as data, predicted with exactly, explained."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from ml import models
from ml.models import ModelFilesError, float_above

FOREST = "org.apache.spark.ml.classification.RandomForestClassificationModel"
BOOSTED = "org.apache.spark.ml.classification.GBTClassificationModel"
LOGISTIC = "org.apache.spark.ml.classification.LogisticRegressionModel"
TREE = "org.apache.spark.ml.classification.DecisionTreeClassificationModel"
BOOSTED_TREE = "org.apache.spark.ml.regression.DecisionTreeRegressionModel"


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def metadata(named: str) -> bytes:
    return json.dumps({"class": named, "uid": "x"}).encode() + b"\n"


def node(
    number: int, stats: list[float], left: int = -1, right: int = -1, feature: int = -1, threshold: float = 0.0, prediction: float = 0.0
):
    split = {"featureIndex": feature, "leftCategoriesOrThreshold": [threshold] if left >= 0 else [], "numCategories": -1}
    return {"id": number, "prediction": prediction, "impurityStats": stats, "leftChild": left, "rightChild": right, "split": split}


def ensemble(named: str, trees: list[list[dict]], tree_class: str = TREE, weights: list[float] | None = None) -> dict[str, bytes]:
    weights = weights or [1.0] * len(trees)
    return models.describe(
        ("a", "b"),
        {
            "part": {
                "metadata/part-00000": metadata(named),
                "treesMetadata/part-00000.parquet": parquet(
                    [{"_1": number, "_2": json.dumps({"class": tree_class}), "_3": weight} for number, weight in enumerate(weights)]
                ),
                "data/part-00000.parquet": parquet(
                    [{"treeID": number, "nodeData": one} for number, tree in enumerate(trees) for one in tree]
                ),
            }
        },
        {"name": "test"},
    )


TWO_TREES = [
    [node(0, [6, 4], 1, 2, 0, 1.5), node(1, [6, 2]), node(2, [0, 2])],
    [node(0, [5, 5], 1, 2, 1, 0.1), node(1, [4, 0]), node(2, [1, 5])],
]


def test_a_forest_of_mllib_gives_the_mean_of_its_leaves_shares():
    model = models.load(ensemble(FOREST, TWO_TREES))
    rows = np.array([[1.5, 0.0], [1.6, 0.0], [1.0, 1.0], [9.0, 9.0]], np.float32)
    assert model.probability(rows).tolist() == pytest.approx([(0.25 + 0) / 2, (1 + 0) / 2, (0.25 + 5 / 6) / 2, (1 + 5 / 6) / 2], abs=1e-7)


def grown(random: np.random.Generator, depth: int) -> list[dict]:
    """A random tree, numbered as MLlib does: a node, all below its left child, all below its right child."""
    nodes: list[dict] = []

    def grow(depth: int) -> int:
        number = len(nodes)
        nodes.append({})
        share = float(random.random())
        if depth == 0 or random.random() < 0.2:
            nodes[number] = node(number, [1 - share, share])
        else:
            left, right = grow(depth - 1), grow(depth - 1)
            threshold = float(random.choice([random.normal(), np.float32(random.normal())]))
            stats = [a + b for a, b in zip(nodes[left]["impurityStats"], nodes[right]["impurityStats"], strict=True)]
            nodes[number] = node(number, stats, left, right, int(random.integers(2)), threshold)
        return number

    grow(depth)
    return nodes


def walked(tree: list[dict], row: np.ndarray) -> float:
    """What MLlib does: left if the value is not above the threshold."""
    here = tree[0]
    while here["leftChild"] >= 0:
        is_left = float(row[here["split"]["featureIndex"]]) <= here["split"]["leftCategoriesOrThreshold"][0]
        here = tree[here["leftChild"] if is_left else here["rightChild"]]
    return here["impurityStats"][1]


@pytest.mark.parametrize("seed", range(10))
def test_random_forests_of_mllib_are_walked_alike(seed: int):
    random = np.random.default_rng(seed)
    trees = [grown(random, depth) for depth in (0, 1, 4, 9)]
    thresholds = [one["split"]["leftCategoriesOrThreshold"][0] for tree in trees for one in tree if one["leftChild"] >= 0]
    # Some rows lie on a threshold, as near as a float can.
    rows = np.concatenate((random.normal(size=(200, 2)), random.choice(thresholds, (200, 2)))).astype(np.float32)
    expected = [np.mean([walked(tree, row) for tree in trees]) for row in rows]
    assert models.load(ensemble(FOREST, trees)).probability(rows) == pytest.approx(expected, abs=1e-6)


def test_a_tree_that_runs_in_a_circle_is_refused():
    circle = [node(0, [1, 0], 1, 2), node(1, [1, 0], 0, 2), node(2, [1, 0])]
    with pytest.raises(ModelFilesError, match="circle"):
        models.load(ensemble(FOREST, [circle]))


def test_boosted_trees_of_mllib_sum_up_to_half_the_log_odds():
    trees = [
        [node(0, [9, 0, 0], 1, 2, 0, 0.5), node(1, [5, 0, 0], prediction=-1.0), node(2, [4, 0, 0], prediction=1.0)],
        [node(0, [9, 0, 0], prediction=0.5)],
    ]
    model = models.load(ensemble(BOOSTED, trees, BOOSTED_TREE, [1.0, 0.1]))
    margins = np.array([-1.0 + 0.05, 1.0 + 0.05])
    assert model.probability(np.array([[0.5, 0], [0.6, 0]], np.float32)) == pytest.approx(1 / (1 + np.exp(-2 * margins)), abs=1e-7)


def test_contributions_of_a_forest_add_up_to_the_probability():
    model = models.load(ensemble(FOREST, TWO_TREES))
    rows = np.array([[1.5, 0.0], [9.0, 9.0]], np.float32)
    # The shares of frauds in the two roots.
    expected = (0.4 + 0.5) / 2
    for is_prepared in (False, True):
        if is_prepared:
            assert model.prepare()
        assert model.contributions(rows).sum(axis=1) == pytest.approx(model.probability(rows) - expected, abs=1e-6)


def test_a_logistic_regression_predicts_and_explains_from_the_mean_row():
    files = models.describe(
        ("a", "b"),
        {
            "part": {
                "metadata/part-00000": metadata(LOGISTIC),
                "data/part-00000.parquet": parquet(
                    [
                        {
                            "interceptVector": {"type": 1, "size": None, "indices": None, "values": [-1.0]},
                            "coefficientMatrix": {
                                "type": 1, "numRows": 1, "numCols": 2, "colPtrs": None, "rowIndices": None,
                                "values": [2.0, 0.5], "isTransposed": True,
                            },
                        }
                    ]
                ),
                models.MEANS: json.dumps({"means": [0.5, 2.0]}).encode(),
            }
        },
        {},
    )  # fmt: skip
    model = models.load(files)
    rows = np.array([[0.5, 2.0], [1.5, 2.0]], np.float32)
    probability = 1 / (1 + np.exp(-np.array([1.0, 3.0])))
    assert model.probability(rows) == pytest.approx(probability)
    contributions = model.contributions(rows)
    assert contributions[0].tolist() == [0.0, 0.0]
    assert contributions[1].tolist() == pytest.approx([probability[1] - probability[0], 0.0])


def boosted(rows: np.ndarray, label: np.ndarray, depth: int) -> bytes:
    parameters = {"objective": "binary:logistic", "max_depth": depth, "base_score": 0.5, "nthread": 1}
    return bytes(xgboost.train(parameters, xgboost.DMatrix(rows, label), 5).save_raw("ubj"))


@pytest.mark.parametrize("depth", [3, 7])
def test_an_average_is_the_mean_of_probabilities_and_of_contributions(depth: int):
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 2)).astype(np.float32)
    label = (rows[:, 0] * rows[:, 1] > 0).astype(int)
    parts = {name: {models.BOOSTER: boosted(rows[part], label[part], depth)} for name, part in (("x", slice(150)), ("y", slice(150, 300)))}
    model = models.load(models.describe(("a", "b"), parts, {}))
    single = [models.load(models.describe(("a", "b"), {name: files}, {})) for name, files in parts.items()]
    assert model.probability(rows) == pytest.approx((single[0].probability(rows) + single[1].probability(rows)) / 2)
    is_cheap = model.prepare()
    assert is_cheap == (depth == 3)
    contributions = model.contributions(rows)
    rise = model.probability(rows) - contributions.sum(axis=1)
    assert rise == pytest.approx(rise[0], abs=1e-5)


def test_a_loaded_model_travels_and_predicts_the_same_bits():
    random = np.random.default_rng(1)
    rows = random.normal(size=(200, 2)).astype(np.float32)
    model = models.load(models.describe(("a", "b"), {"x": {models.BOOSTER: boosted(rows, (rows[:, 0] > 0).astype(int), 3)}}, {}))
    model.prepare()
    before = model.probability(rows)
    travelled = pickle.loads(pickle.dumps(model))
    assert np.array_equal(travelled.probability(rows), before)
    assert np.array_equal(travelled.contributions(rows), model.contributions(rows))


@given(
    st.floats(allow_nan=False, min_value=-1e30, max_value=1e30),
    st.floats(width=32, allow_nan=False, min_value=-(2.0**100), max_value=2.0**100),
)
def test_no_row_changes_sides_when_a_threshold_becomes_a_float(threshold: float, value: float):
    above = float_above(np.array([threshold]))[0]
    assert (value <= threshold) == (np.float32(value) < above)


@pytest.mark.parametrize("threshold", [0.0, 1.5, 0.1, -0.1, 1 / 3])
def test_a_threshold_that_is_or_is_not_a_float_divides_as_before(threshold: float):
    above = float_above(np.array([threshold]))[0]
    below = np.nextafter(above, np.float32(-np.inf))
    assert float(below) <= threshold < float(above)


@pytest.mark.parametrize(
    "named",
    ["org.apache.spark.ml.PipelineModel", "org.apache.spark.ml.regression.RandomForestRegressionModel", "os.system", "", None],
)
def test_a_class_that_is_not_listed_is_refused_by_name(named: str | None):
    with pytest.raises(ModelFilesError, match="names the class"):
        models.load(ensemble(named, TWO_TREES))  # type: ignore[arg-type]


def test_a_tree_of_a_class_that_is_not_listed_is_refused():
    with pytest.raises(ModelFilesError, match=r"a tree of a model names the class java\.lang\.Runtime"):
        models.load(ensemble(FOREST, TWO_TREES, tree_class="java.lang.Runtime"))


def test_a_pickle_is_not_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    files = models.describe(("a",), {"part": {"model.pkl": pickle.dumps(Bomb()), "python_model.pkl": pickle.dumps(Bomb())}}, {})
    with pytest.raises(ModelFilesError, match="neither"):
        models.load(files)
    assert not (tmp_path / "exploded").exists()


def test_files_of_another_format_or_without_description_are_refused():
    with pytest.raises(ModelFilesError, match=r"lack model\.json"):
        models.load({})
    with pytest.raises(ModelFilesError, match="format 99"):
        models.load({models.DESCRIPTION: b'{"format": 99}'})
