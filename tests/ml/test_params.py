"""The declared models are checked when they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from etl.errors import RefusedError
from ml.features import HANDBOOK_FEATURES, MODEL_FEATURES
from ml.params import PARAMS, Params, params


def changed(path: Path, change) -> Path:
    content = yaml.safe_load(PARAMS.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_declared_models_are_those_of_the_project():
    declared = params()
    assert {model.kind for model in declared.models.values()} == {
        "logistic_regression", "random_forest", "gradient_boosted_trees", "xgboost", "average",
    }  # fmt: skip
    assert declared.models["average"].of == ("random_forest", "xgboost")
    assert declared.models["xgboost"].feature_names() == MODEL_FEATURES
    assert declared.handbook.models["random_forest"].feature_names() == HANDBOOK_FEATURES


def test_models_are_chosen_by_name_or_by_default():
    declared = params()
    assert declared.chosen([]) == declared.train
    assert declared.chosen([], declared.compare) == declared.compare
    assert declared.chosen(["average"], declared.compare) == ("average",)
    with pytest.raises(RefusedError, match="model oracle is not declared"):
        declared.chosen(["oracle"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.update(speed=1), "speed"),
        (lambda content: content["models"]["xgboost"].update(kind="oracle"), r"models\.xgboost\.kind"),
        (lambda content: content["models"]["xgboost"].update(features=["shoe_size"]), "shoe_size"),
        (lambda content: content["models"]["average"].update(of=["oracle"]), "oracle"),
        (lambda content: content["models"].update(twice={"kind": "average", "of": ["average"]}), "average of an average"),
        (lambda content: content["models"]["xgboost"].update(of=["random_forest"]), "names the models of an average"),
        (lambda content: content["thresholds"].update(medium=0.9, high=0.5), "medium must not be above high"),
        (lambda content: content["windows"].update(test_days=0), r"windows\.test_days"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change, told: str):
    with pytest.raises(RefusedError, match=told):
        params(changed(tmp_path / "params.yaml", change))


def test_named_features_come_in_the_order_of_the_table(tmp_path: Path):
    path = changed(tmp_path / "params.yaml", lambda content: content["models"]["xgboost"].update(features=["is_night", "amount"]))
    assert params(path).models["xgboost"].feature_names() == ("amount", "is_night")


def test_params_cannot_be_changed_after_they_were_read():
    with pytest.raises(ValueError, match="frozen"):
        Params.model_validate(params().model_dump()).seed = 1
