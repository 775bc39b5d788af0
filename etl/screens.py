"""What people read on a terminal: one console for every table that a verb prints."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH_OF_FILES = 130
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""


def console() -> Console:
    """Return the console of standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)
