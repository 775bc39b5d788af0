"""Processes that end or stand still at a named step of their work, as in a crash: no handler runs, no session is closed."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from etl.settings import settings


@dataclass(frozen=True)
class Step:
    """A call at which a process dies or stands still.

    Attributes
    ----------
    function
        `module:name` or `module:Class.method`; the name may call, as in `etl.storage:storage().delete`.
    when
        Before the call, after it has returned, or so many seconds after it began: while a server works for it. A process
        that stands still does so before the call.
    matching
        Only a call that has this text in one of its positional arguments, such as a statement.
    """

    function: str
    when: Literal["before", "after"] | float
    matching: str = ""


# A process that has imported what verbs need and forks the ones to be killed: they need not import it again.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["etl.extract", "etl.load_csv", "etl.sweep", "etl.transform", "ml.score", "pyspark.sql.connect.session"])


def killed_at(step: Step, work: str) -> int:
    """Run `work` (lines of Python) in a process that dies at a step; return its exit code."""
    with tempfile.NamedTemporaryFile("r") as errors:
        process = _started(step, work, errors.name, signal.SIGKILL)
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{step} was not reached within two minutes: {errors.read()[-3000:]}")
        assert process.exitcode < 0, errors.read()[-3000:]
        return process.exitcode


@contextlib.contextmanager
def held_at(step: Step, work: str) -> Iterator[Callable[[], int]]:
    """Run `work` in a process that stands still before a step; gives a function that lets it go on, returning its exit code."""
    with tempfile.NamedTemporaryFile("r") as errors:
        process = _started(step, work, errors.name, signal.SIGSTOP)
        seen = psutil.Process(process.pid)
        deadline = time.monotonic() + 120
        try:
            while seen.status() != psutil.STATUS_STOPPED:
                assert process.exitcode is None, errors.read()[-3000:]
                assert time.monotonic() < deadline, f"{step} was not reached within two minutes: {errors.read()[-3000:]}"
                time.sleep(0.05)

            def go_on() -> int:
                seen.resume()
                process.join(120)
                assert process.exitcode is not None, f"it did not end within two minutes: {errors.read()[-3000:]}"
                return process.exitcode

            yield go_on
        finally:
            process.kill()


def _started(step: Step, work: str, errors: str, told: signal.Signals) -> multiprocessing.process.BaseProcess:
    process = _processes.Process(target=_run, args=(step, textwrap.dedent(work), dict(os.environ), errors, told))
    process.start()
    return process


def _run(step: Step, work: str, environment: dict[str, str], errors: str, told: signal.Signals) -> None:
    os.environ.clear()
    os.environ.update(environment)
    settings.cache_clear()
    with Path(errors).open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    module_name, name = step.function.split(":")
    # The last name is replaced in what the others lead to.
    holder, _, attribute = f"module.{name}".rpartition(".")
    holder = eval(holder, {"module": importlib.import_module(module_name)})
    setattr(holder, attribute, _stopping(holder, attribute, step, told))
    exec(compile(work, "work", "exec"), {"__name__": "work"})


def _stopping(holder: Any, attribute: str, step: Step, told: signal.Signals) -> Callable[..., Any]:
    original = getattr(holder, attribute)

    def stop() -> None:
        os.kill(os.getpid(), told)

    def stops(*arguments: Any, **named: Any) -> Any:
        if step.matching and not any(step.matching in str(argument) for argument in arguments):
            return original(*arguments, **named)
        if step.when == "after":
            original(*arguments, **named)
        elif step.when != "before":
            threading.Timer(step.when, stop).start()
            original(*arguments, **named)
            raise AssertionError("the call ended before the process was killed")
        stop()
        # Only who stood still goes on, and not to stand still again.
        setattr(holder, attribute, original)
        return original(*arguments, **named)

    return stops
