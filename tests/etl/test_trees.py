"""Copying trees of files: whole or not at all, a few at a time, and told apart when they change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.trees import ChangedError, LocalTree, each, local_chunks, write_local


def test_a_tree_of_this_machine_comes_back_with_content_and_permission(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "run" / "model").mkdir(parents=True)
    (source / "run" / "model" / "trees.json").write_text("{}")
    (source / "run" / "model" / "trees.json").chmod(0o640)
    (source / "run").chmod(0o700)
    tree, back = LocalTree("models", source), LocalTree("models", copy)
    entries = list(tree.entries())
    assert [(entry.path, entry.is_folder, entry.permission) for entry in entries[1:]] == [
        ("run", True, "700"),
        ("run/model", True, f"{(source / 'run' / 'model').stat().st_mode & 0o777:o}"),
        ("run/model/trees.json", False, "640"),
    ]
    for entry in entries:
        back.make_folder(entry) if entry.is_folder else back.write(entry, tree.read(entry))
    there = {entry.path: entry for entry in back.entries()}
    for entry in entries:
        back.settle(entry, there[entry.path])
    assert [(entry.path, entry.permission, entry.length) for entry in back.entries()] == [
        (entry.path, entry.permission, entry.length) for entry in entries
    ]
    assert (copy / "run" / "model" / "trees.json").read_text() == "{}"


def test_a_file_that_went_away_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    tree = LocalTree("models", tmp_path)
    (entry,) = (entry for entry in tree.entries() if not entry.is_folder)
    (tmp_path / "a").unlink()
    with pytest.raises(ChangedError):
        tree.checksum(entry)


def test_a_write_that_breaks_off_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_local(path, [b"ab", b"c"]) == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_local(path, broken())
    assert b"".join(local_chunks(path)) == b"abc"


def test_each_does_everything_once_and_stops_at_a_failure() -> None:
    done: list[int] = []
    each(done.append, iter(range(1000)))
    assert sorted(done) == list(range(1000))
    begun: list[int] = []
    failed = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 10:
            failed.set()
            raise ValueError("ten")
        if item > 10:
            failed.wait(5)

    with pytest.raises(ValueError, match="ten"):
        each(work, iter(range(100_000)))
    assert len(begun) < 1000
