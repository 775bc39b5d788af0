"""Structured logging, one line an event, on standard error; and the frame around every verb's `main`."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

import structlog

from etl.errors import WarehouseError
from etl.faults import named
from etl.settings import settings


class _StandardError:
    """Standard error as it is at each line: a progress bar takes its place meanwhile, to stay below the lines."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure() -> None:
    """Write events as text for people or JSON for machines, as the setting `log_format` says."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings().log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, sort_keys=False)
    )
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if settings().log_format == "json" else "%H:%M:%S", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(_StandardError()),  # type: ignore[arg-type]
    )


logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def run_main(main: Callable[[], int | None]) -> None:
    """Run a verb's `main` and end the process with its exit code.

    Errors of this project, and those of libraries about servers (`etl.faults`), end in one sentence; anything else keeps its
    traceback, for it is a defect. A reader of its output that goes away, as `head` does, ends it without a word, with the exit
    code that a shell gives for SIGPIPE.
    """
    configure()
    try:
        code = _run(main)
        sys.stdout.flush()
    except BrokenPipeError:
        if not (left := [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream.fileno())]):
            # A connection to a server broke.
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in left:
            # Python writes at its end what is still held back.
            os.dup2(nowhere, stream.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _run(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except WarehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (fault := named(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing is lost, run the same command again", file=sys.stderr)
        return 130


def _has_no_reader(descriptor: int) -> bool:
    asked = select.poll()
    asked.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in asked.poll(0))
