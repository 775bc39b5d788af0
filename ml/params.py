"""The declared models: `ml/params.yaml`, checked."""

from __future__ import annotations

import datetime as dt
import functools
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from etl.errors import RefusedError
from etl.settings import ROOT
from ml.features import FEATURE_NAMES, HANDBOOK_FEATURES, MODEL_FEATURES

PARAMS = ROOT / "ml" / "params.yaml"

Level = Literal["LOW", "MEDIUM", "HIGH"]
LEVELS: tuple[Level, ...] = ("LOW", "MEDIUM", "HIGH")


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Windows(_Declared):
    """Days of the protocol."""

    train_days: int = Field(ge=1)
    delay_days: int = Field(ge=0)
    test_days: int = Field(ge=1)


class Thresholds(_Declared):
    """Probabilities from which on a transaction is called fraud, and is of medium or high risk."""

    fraud: float = Field(gt=0, le=1)
    medium: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Thresholds:
        if self.medium > self.high:
            raise ValueError("medium must not be above high")
        return self


class Reasons(_Declared):
    """How many features a prediction names; for which levels of risk where exact SHAP values of every row cost too much."""

    count: int = Field(ge=1)
    levels: tuple[Level, ...]


class Declaration(_Declared):
    """One model.

    Attributes
    ----------
    kind
        Which algorithm; `average` is the mean probability of the models in `of`.
    features
        `all`, `chosen` (`ml.features.MODEL_FEATURES`), `handbook` (the Handbook's 15), or a list of names.
    fraud_weight
        Weight of a fraud in training, any other transaction weighing 1; `balanced` gives both classes the same sum.
    rounds
        Trees of XGBoost.
    workers
        Spark tasks that train XGBoost together; each takes a slot until all are done.
    parameters
        As the library names them: MLlib's camelCase, XGBoost's own.
    """

    kind: Literal["logistic_regression", "random_forest", "gradient_boosted_trees", "xgboost", "average"]
    features: Literal["all", "chosen", "handbook"] | tuple[str, ...] = "chosen"
    fraud_weight: float | Literal["balanced"] = 1.0
    rounds: int = Field(100, ge=1)
    workers: int = Field(1, ge=1)
    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    of: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Declaration:
        if (self.kind == "average") != bool(self.of):
            raise ValueError("`of` names the models of an average, and of nothing else")
        if not isinstance(self.features, str) and (unknown := set(self.features) - set(FEATURE_NAMES)):
            raise ValueError(f"there is no feature {', '.join(sorted(unknown))}")
        return self

    def feature_names(self) -> tuple[str, ...]:
        """Return the features that this model reads, in the order of the table's columns."""
        if self.features == "all":
            return FEATURE_NAMES
        if self.features == "handbook":
            return HANDBOOK_FEATURES
        if self.features == "chosen":
            return MODEL_FEATURES
        return tuple(name for name in FEATURE_NAMES if name in self.features)


class Handbook(_Declared):
    """The Handbook's own models, and the test week of its published figures."""

    test_from: dt.date
    models: dict[str, Declaration]


class Params(_Declared):
    """The whole file."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    seed: int
    windows: Windows
    thresholds: Thresholds
    reasons: Reasons
    partitions: int = Field(ge=1)
    train: tuple[str, ...]
    models: dict[str, Declaration]
    handbook: Handbook
    compare: tuple[str, ...]

    @model_validator(mode="after")
    def _known(self) -> Params:
        named = {*self.train, *self.compare, *(part for model in self.models.values() for part in model.of)}
        if unknown := named - set(self.models):
            raise ValueError(f"there is no model {', '.join(sorted(unknown))}")
        if nested := [name for name, model in self.models.items() if any(self.models[part].kind == "average" for part in model.of)]:
            raise ValueError(f"{', '.join(nested)}: an average of an average")
        return self

    def chosen(self, names: list[str], otherwise: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the named models, or others (those of `train`) when none is named.

        Raises
        ------
        RefusedError
            When a name is not declared.
        """
        if unknown := [name for name in names if name not in self.models]:
            raise RefusedError(f"model {', '.join(unknown)} is not declared in ml/params.yaml; declared are {', '.join(self.models)}")
        return tuple(names) or otherwise or self.train


@functools.cache
def params(path: Path = PARAMS) -> Params:
    """Read the declared models.

    Raises
    ------
    RefusedError
        Naming the field that is wrong.
    """
    try:
        return Params.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"{path.name}: {place}: {first['msg']}; correct it") from error
