"""The runner's own tests (JUnit, tests/jenkins/groovy): what it refuses, how a build goes, and that our pipelines keep the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jenkins import runner

# Half a minute of Groovy's compiler: too long for the quick part.
pytestmark = pytest.mark.stack


def test_pipelines_and_controller_keep_every_rule_and_the_runner_refuses_what_breaks_one(tmp_path: Path):
    found = runner.class_path(tmp_path)
    junit = "org.junit.platform.console.ConsoleLauncher"
    told = runner.java(found, junit, "execute", "--scan-classpath", tmp_path, "--fail-if-no-tests", "--disable-banner", "--details", "tree")
    assert told.returncode == 0, told.stdout
