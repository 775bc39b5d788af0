"""How a verb ends when what it prints is no longer read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from etl.settings import ROOT

MANY = {
    "lines": "[print(number) for number in range(100_000)]",
    "few words, written at the end": "time.sleep(0.5); print('done')",
    "on the screen": "[console().print(number) for number in range(20_000)]",
    "log lines": "[print(number, file=sys.stderr) for number in range(100_000)]",
}
VERB = """
import sys, time
from etl.log import run_main
from etl.screens import console
def main():
    {work}
run_main(main)
"""


def piped(work: str, reader: str, tmp_path: Path) -> tuple[str, str]:
    """Run a verb with a reader behind it; returns its exit code and what it wrote elsewhere."""
    (tmp_path / "verb.py").write_text(VERB.format(work=work))
    streams = "2>&1" if "stderr" in work else f"2>{tmp_path / 'errors'}"
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} {tmp_path / 'verb.py'} {streams} | {reader} >/dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    errors = tmp_path / "errors"
    return ran.stdout.strip(), ran.stderr + (errors.read_text() if errors.exists() else "")


@pytest.mark.parametrize("work", MANY)
def test_a_reader_that_leaves_ends_a_verb_without_a_word(work: str, tmp_path: Path):
    reader = "true" if "end" in work else "head -1"
    assert piped(MANY[work], reader, tmp_path) == ("141", "")


def test_a_reader_that_stays_changes_nothing(tmp_path: Path):
    assert piped(MANY["lines"], "cat", tmp_path) == ("0", "")


def test_a_broken_connection_is_no_reader_that_left(tmp_path: Path):
    code, errors = piped("raise BrokenPipeError('a server went away')", "cat", tmp_path)
    assert code == "1"
    assert "BrokenPipeError: a server went away" in errors
