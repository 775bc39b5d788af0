"""Processes that kill themselves at a named step of their work, as a crash would: no handler runs, no session is closed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Literal

from etl.settings import ROOT


@dataclass(frozen=True)
class Step:
    """A call at which a process dies.

    Attributes
    ----------
    function
        `module:name` or `module:Class.method`; the name may call, as in `etl.storage:storage().delete`.
    when
        Before the call, after it has returned, or so many seconds after it began: while a server works for it.
    matching
        Only a call that has this text in one of its positional arguments, such as a statement.
    """

    function: str
    when: Literal["before", "after"] | float
    matching: str = ""


def killed_at(step: Step, work: str) -> int:
    """Run `work` (lines of Python) in a process that dies at a step; return its exit code."""
    module, name = step.function.split(":")
    holder, _, attribute = f"module.{name}".rpartition(".")
    script = f"""
import importlib, os, signal, sys, threading
sys.path.insert(0, {str(ROOT)!r})
module = importlib.import_module({module!r})
holder = {holder}
original = getattr(holder, {attribute!r})
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def dies(*arguments, **named):
    if not any({step.matching!r} in str(argument) for argument in arguments) and {step.matching!r}:
        return original(*arguments, **named)
    if {step.when!r} == "after":
        original(*arguments, **named)
    elif {step.when!r} != "before":
        threading.Timer({step.when!r}, die).start()
        original(*arguments, **named)
        raise AssertionError("the call ended before the process was killed")
    die()
setattr(holder, {attribute!r}, dies)
{textwrap.dedent(work)}
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert ran.returncode < 0, ran.stderr[-3000:]
    return ran.returncode
