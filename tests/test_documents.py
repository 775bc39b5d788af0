"""What is written down is true: settings, usage lines, help of every verb."""

from __future__ import annotations

import ast
import functools
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
    assert "\nExit codes: " in told


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


OPERATIONS = ROOT / "docs" / "operations.md"
GAP = "…"
NOT_TOLD = ("ValueError", "RuntimeError", "ArgumentTypeError", "PydanticCustomError", "ProblemError")
# Reached only by files that nobody but this trainer writes, and their sum is compared before.
UNTOLD = ("ml/models.py", "ml/shapley.py")


def sentence(node: ast.expr) -> str:
    """The text of an error as the code has it, a gap for each value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(sentence(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return sentence(left) + sentence(right)
    return GAP


@functools.cache
def told_by_code() -> dict[str, str]:
    """Sentences of this project's errors in `etl`, `ml` and `api`, and of warnings; where each of them is."""
    found = {}
    for path in sorted(path for room in ("etl", "ml", "api") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                # Errors of Python itself are caught, or are defects; pydantic's are reasons of rejected rows, problems answers to clients.
                if name.endswith("Error") and name not in (
                    "ValueError",
                    "RuntimeError",
                    "ArgumentTypeError",
                    "PydanticCustomError",
                    "ProblemError",
                ):
                    found[sentence(node.args[0])] = str(path.relative_to(ROOT))
    return found


@functools.cache
def told_by_the_page() -> list[str]:
    """Sentences quoted in the first column of the tables under `What to do when a step fails`."""
    section = OPERATIONS.read_text().split("## What to do when a step fails")[1].split("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [quoted for cell in cells if "(a warning)" not in cell for quoted in re.findall(r"`([^`]+)`", cell)]


def is_in(quoted: str, told: str) -> bool:
    """Whether a quoted part is in a sentence, its gaps standing for any text; one of little but gaps is the whole sentence."""
    parts = quoted.split(GAP)
    if max(map(len, parts)) < 9:
        return quoted == told
    return re.search(".*?".join(map(re.escape, parts)), told, re.DOTALL) is not None


@pytest.mark.parametrize("quoted", told_by_the_page())
def test_a_sentence_quoted_in_operations_is_one_of_the_code(quoted: str) -> None:
    assert any(is_in(quoted, told) for told in told_by_code())


@pytest.mark.parametrize("told", [told for told, path in told_by_code().items() if path not in UNTOLD])
def test_operations_says_what_to_do_about_every_error(told: str) -> None:
    assert any(is_in(quoted, told) for quoted in told_by_the_page()), f"{told_by_code()[told]}: docs/operations.md has no row for it"


def test_operations_names_every_verb() -> None:
    text = OPERATIONS.read_text()
    assert [verb.name for verb in VERBS if verb.name not in ("lib.sh", "test.sh", "test_all.sh") and f"bash/{verb.name}" not in text] == []
