"""What is written down is true: settings, usage lines, help of every verb."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from etl.settings import ROOT, example

VERBS = sorted((ROOT / "bash").glob("*.sh"))
STATEMENTS = sorted([*(ROOT / "hive").rglob("*.hql"), *(ROOT / "hive").rglob("*.hql.j2"), *(ROOT / "sql").rglob("*.sql")])


def test_env_example_is_made_from_the_settings() -> None:
    assert (ROOT / ".env.example").read_text() == example()


@pytest.mark.parametrize("verb", [path for path in VERBS if path.name != "lib.sh"], ids=lambda path: path.name)
def test_verb_prints_its_header_on_dash_h(verb: Path) -> None:
    told = subprocess.run([verb, "-h"], capture_output=True, text=True, check=True).stdout
    assert f"Usage: bash/{verb.name}" in told


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_usage_line_of_a_statement_names_a_verb_that_is_there(path: Path) -> None:
    header = path.read_text().splitlines()[:8]
    (usage,) = [line for line in header if line.startswith("-- Usage:")]
    (verb,) = re.findall(r"bash/\w+\.sh", usage)[:1]
    assert (ROOT / verb).is_file()


@pytest.mark.parametrize(
    "verb", [path for path in VERBS if path.name not in ("lib.sh", "test.sh", "test_all.sh")], ids=lambda path: path.name
)
def test_readme_or_operations_names_every_verb(verb: Path) -> None:
    documents = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert f"bash/{verb.name}" in documents
