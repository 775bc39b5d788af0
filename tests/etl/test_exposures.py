"""The exposures of the dbt project say what the pages of Power BI and the dashboard read."""

from __future__ import annotations

import re

import yaml

from etl.powerbi import PROJECT, pages_folder, read_json, read_model, read_visuals, statement
from etl.settings import ROOT

EXPOSURES = ROOT / "hive" / "mart" / "models" / "exposures.yml"
STATEMENTS = ROOT / "etl" / "dashboard" / "statements.py"
DASHBOARD = "bash/dashboard.sh"


def declared() -> dict[str, list[str]]:
    """What each exposure depends on, by its label."""
    exposures = yaml.safe_load(EXPOSURES.read_text(encoding="utf-8"))["exposures"]
    return {one["label"]: one["depends_on"] for one in exposures}


def test_an_exposure_of_a_page_depends_on_what_its_visuals_ask() -> None:
    model, asked = read_model(), dict[str, set[str]]()
    for visual in read_visuals():
        title = read_json(pages_folder(PROJECT) / visual.page / "page.json")["displayName"]
        asked.setdefault(title, set()).update(re.findall(r"from `mart`\.`(\w+)`", statement(visual, model)))
    found = {label: depends_on for label, depends_on in declared().items() if label != DASHBOARD}
    assert found == {title: [f"ref('{table}')" for table in sorted(tables)] for title, tables in asked.items()}


def test_the_exposure_of_the_dashboard_depends_on_what_its_statements_ask() -> None:
    asked = sorted(set(re.findall(r"(?:FROM|JOIN) (mart|ops)\.(\w+)", STATEMENTS.read_text(encoding="utf-8"))))
    assert declared()[DASHBOARD] == [f"ref('{table}')" if name == "mart" else f"source('ops', '{table}')" for name, table in asked]
