"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str, private: bool = False) -> None:
    """Write a file whole; a private one is its owner's only, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    mode = 0o600 if private else 0o644
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:  # noqa: PTH123 - the mode must stand from the first byte
        file.write(text)
    # Whatever the umask.
    partial.chmod(mode)
    partial.replace(path)
