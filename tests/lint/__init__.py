"""Filters of the HQL templates and functions of dbt, for sqlfluff (hive/.sqlfluff names this folder)."""

import json

import yaml

from etl.settings import ROOT
from etl.sql_server import literal

SQLFLUFF_JINJA_FILTERS = {"literal": literal}
_variables = yaml.safe_load((ROOT / "hive" / "mart" / "dbt_project.yml").read_text(encoding="utf-8"))["vars"]


def env_var(name: str, default: str) -> str:
    return default


def fromjson(text: str) -> object:
    return json.loads(text)


def var(name: str) -> object:
    return _variables[name]
