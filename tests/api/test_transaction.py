"""The model of a transaction, and what is written down of it."""

from __future__ import annotations

import subprocess
import sys

from etl.settings import ROOT


def test_the_json_schema_in_the_repository_is_that_of_the_model():
    made = subprocess.run([sys.executable, "-m", "api.transaction"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "api" / "transaction.v1.schema.json").read_text() == made
