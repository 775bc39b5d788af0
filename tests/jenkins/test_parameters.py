"""bash/pipeline.sh: parameters of a build become words of a verb, or nothing runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from etl.settings import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The real wrapper beside verbs that print their words."""
    (tmp_path / "bash").mkdir()
    for name in ("pipeline.sh", "lib.sh"):
        shutil.copy(ROOT / "bash" / name, tmp_path / "bash")
    for verb in ("extract", "load", "score", "status", "deploy", "stream", "rejects"):
        script = tmp_path / "bash" / f"{verb}.sh"
        script.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
        script.chmod(0o755)
    return tmp_path


def run(checkout: Path, command: str, **parameters: str) -> tuple[int, str]:
    told = subprocess.run(
        [checkout / "bash" / "pipeline.sh", *command.split()],
        env={"PATH": os.environ["PATH"], "BUILD_TAG": "b1", **parameters}, capture_output=True, text=True,
    )  # fmt: skip
    return told.returncode, told.stdout


@pytest.mark.parametrize(
    ("command", "parameters", "words"),
    [
        ("load full TABLES", {}, "<full>"),
        ("load full TABLES", {"TABLES": ""}, "<full>"),
        ("load full TABLES", {"TABLES": " customers\n transactions "}, "<full><customers><transactions>"),
        ("extract deletes FORCE", {"FORCE": "true"}, "<deletes><--force>"),
        ("extract deletes FORCE", {"FORCE": "false"}, "<deletes>"),
        (
            "extract watermark rewind TABLES BATCH FORCE",
            {"TABLES": "customers", "BATCH": "7", "FORCE": "false"},
            "<watermark><rewind><customers><--to><7>",
        ),
        ("extract watermark rewind TABLES BATCH FORCE", {"TABLES": "customers"}, ""),
        ("score SCORE", {"SCORE": "true"}, "<>"),
        ("score SCORE", {"SCORE": "false"}, ""),
        ("deploy OVERLAY MODEL_VERSION", {"OVERLAY": "local", "MODEL_VERSION": "3"}, "<local><--model-version><3>"),
        ("deploy OVERLAY MODEL_VERSION", {"OVERLAY": "local", "MODEL_VERSION": ""}, "<local>"),
        ("deploy DEPLOY OVERLAY --yes", {"DEPLOY": "true", "OVERLAY": "local"}, "<local><--yes>"),
        ("deploy DEPLOY OVERLAY --yes", {"DEPLOY": "false", "OVERLAY": "local"}, ""),
        ("stream lag MAX_LAG", {"MAX_LAG": "500", "DRY_RUN": "true"}, "<lag><--max><500>"),
        ("rejects replay --only-valid REPLAY", {"REPLAY": "true"}, "<replay><--only-valid>"),
        ("rejects replay --only-valid REPLAY", {}, ""),
        ("load full TABLES", {"DRY_RUN": "true"}, ""),
        ("extract watermark rewind TABLES BATCH", {"TABLES": "customers", "BATCH": "7", "DRY_RUN": "true"}, ""),
        ("extract watermark show TABLES", {"TABLES": "customers", "DRY_RUN": "true"}, "<watermark><show><customers>"),
        ("status", {"DRY_RUN": "true"}, "<>"),
    ],
)
def test_parameters_become_words(checkout: Path, command: str, parameters: dict[str, str], words: str):
    assert run(checkout, command, **parameters) == (0, words)
    assert not (checkout / "reports" / "failure.txt").exists()


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("load full TABLES", "TABLES", "transactions; rm -rf /"),
        ("load full TABLES", "TABLES", "$(id)"),
        ("load full TABLES", "TABLES", "--force"),
        ("load full TABLES", "TABLES", "customers *"),
        ("extract watermark rewind TABLES BATCH", "BATCH", "7 --force"),
        ("extract watermark rewind TABLES BATCH", "BATCH", "-1"),
        ("extract deletes FORCE", "FORCE", "true true"),
        ("deploy OVERLAY", "OVERLAY", "../../etc"),
        ("stream lag MAX_LAG", "MAX_LAG", "1 --group other"),
        ("load full", "DRY_RUN", "yes"),
        ("load full", "DRY_RUN", "true true"),
    ],
)
def test_a_parameter_that_holds_something_else_is_refused_and_nothing_runs(checkout: Path, command: str, name: str, value: str):
    assert run(checkout, command, **{name: value}) == (2, "")
    assert f"error: parameter {name} is " in run(checkout, "failure")[1]


def test_a_stage_that_is_killed_is_told_as_stopped(checkout: Path):
    (checkout / "bash" / "load.sh").write_text("#!/bin/sh\nkill -9 $PPID\n")
    assert run(checkout, "load full", STAGE_NAME="Load")[0] == -9
    assert run(checkout, "failure")[1].startswith("stage Load, bash/load.sh: stopped before it ended")


def test_a_stage_tried_again_tells_what_its_last_attempt_said(checkout: Path):
    load = checkout / "bash" / "load.sh"
    load.write_text("#!/bin/sh\necho 'error: the server went away' >&2\nexit 6\n")
    assert run(checkout, "load full", STAGE_NAME="Load")[0] == 6
    load.write_text("#!/bin/sh\necho 'Killed' >&2\nexit 137\n")
    assert run(checkout, "load full", STAGE_NAME="Load")[0] == 137
    assert run(checkout, "failure")[1] == "stage Load, bash/load.sh: exit code 137: Killed\n"
    assert (checkout / "reports" / "Load.log").read_text() == "error: the server went away\nKilled\n"


def test_a_failure_of_jenkins_itself_names_no_verb(checkout: Path):
    assert run(checkout, "failure") == (0, "no verb failed: the reason stands above, from Jenkins itself\n")
