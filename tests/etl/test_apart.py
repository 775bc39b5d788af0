"""How the readers server gets a session of the operating system of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.stack import apart

NICE = 7
TELLS = """
import json, os, pathlib
autogroup = pathlib.Path("/proc/self/autogroup")
print(json.dumps([os.getpid(), os.getsid(0), os.getpgrp(), os.nice(0), autogroup.read_text().split()[-1] if autogroup.is_file() else None]))
"""


@pytest.mark.parametrize("leads_a_group", [True, False])
def test_the_program_leads_a_session_with_a_nice_value_of_its_own(leads_a_group: bool) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-I", apart.__file__, str(NICE), "-", sys.executable, "-c", TELLS],
        stdout=subprocess.PIPE, process_group=0 if leads_a_group else None,
    )  # fmt: skip
    told, _ = begun.communicate(timeout=30)
    pid, session, group, nice, autogroup = json.loads(told)
    # The same process: the supervisor watches and signals what it began.
    assert (pid, session, group) == (begun.pid,) * 3
    assert nice == os.nice(0) + NICE
    assert autogroup == (str(NICE) if Path("/proc/self/autogroup").is_file() else None)


def test_a_program_that_is_not_there_is_named() -> None:
    ran = subprocess.run([sys.executable, "-I", apart.__file__, "1", "-", "/nowhere/java"], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "No such file or directory" in ran.stderr
