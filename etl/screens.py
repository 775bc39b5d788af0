"""What people read on a terminal: one console for every table that a verb prints, and bars while they wait."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_FILES = 130
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""

Update = Callable[[float, float | None], None]
"""Takes how much is done and of how much; None where that is not known yet."""


def console() -> Console:
    """Return the console of standard output."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            # As for whatever else is printed: run_main ends the verb.
            raise

    return Screen(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)


@contextmanager
def progress(words: str, total: float | None = None) -> Iterator[Update]:
    """Show a bar and the time on standard error while this block runs; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    # A verb that nobody watches does not pay for the import.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(words, total=total)
        yield lambda done, of: bars.update(task, completed=done, total=of)


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Show on standard error that a statement is at work, and since when; what is given to the yielded function stands beside it.

    Nothing where that is no terminal, nor before a second is over.
    """
    if not sys.stderr.isatty():
        yield lambda _words: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bars.add_task("running")
    late = threading.Timer(1, bars.start)
    late.daemon = True
    late.start()
    try:
        yield lambda words: bars.update(task, description=words)
    finally:
        late.cancel()
        late.join()
        bars.stop()
