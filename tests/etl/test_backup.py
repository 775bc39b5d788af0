"""The folder of a backup: what is known of it, what is refused, what is removed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from etl import backup, restore
from etl.backup import Dump, Manifest, Store
from etl.errors import BusyError, RefusedError
from etl.settings import settings
from etl.stack import machine
from etl.trees import Entry, sha256

FILE = Entry("hdfs", "raw/t/1-a/part-0.parquet", False, "644", "etl", "etl", 3, 128, "MD5 x", sha256([b"abc"]))
FOLDER = Entry("hdfs", "raw/t", True, "700", "etl", "etl")


def made(folder: Path) -> Store:
    """A finished backup of one file and one database."""
    store = Store(folder)
    (folder / backup.LOCK).touch()
    store.path(FILE).parent.mkdir(parents=True)
    store.path(FILE).write_bytes(b"abc")
    (folder / "postgres").mkdir()
    (folder / "postgres" / "mlflow-1.dump").write_bytes(b"dump")
    lines = "".join(backup._line(entry) for entry in (FOLDER, FILE)).encode()
    (folder / "files-1.jsonl").write_bytes(lines)
    manifest = Manifest(
        "2026-01-01", "2026-01-01", "1", {"hdfs": "hdfs://here:8020/warehouse"},
        (Dump("mlflow", "postgres/mlflow-1.dump", 4, sha256([b"dump"])),),
        "files-1.jsonl", sha256([lines]), 1, 3, {"raw.t": 1}, "pointers",
    )  # fmt: skip
    (folder / backup.MANIFEST).write_text(manifest.to_json())
    return store


def test_a_whole_backup_is_verified(tmp_path: Path) -> None:
    store = made(tmp_path)
    manifest = restore.verify(store)
    assert manifest.tables == {"raw.t": 1}
    assert list(store.entries(manifest)) == [FOLDER, FILE]


@pytest.mark.parametrize("name", ["hdfs/raw/t/1-a/part-0.parquet", "postgres/mlflow-1.dump", "files-1.jsonl"])
@pytest.mark.parametrize("damage", [b"abd", b"ab", None])
def test_a_damaged_shortened_or_missing_file_is_named(tmp_path: Path, name: str, damage: bytes | None) -> None:
    store = made(tmp_path)
    (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_bytes(damage)
    with pytest.raises(RefusedError, match=f"damaged or missing .*{name}"):
        restore.verify(store)


def test_a_damaged_manifest_is_refused_and_a_missing_one_is_no_backup(tmp_path: Path) -> None:
    store = made(tmp_path)
    path = tmp_path / backup.MANIFEST
    path.write_text(path.read_text().replace('"raw.t": 1', '"raw.t": 2'))
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged"):
        restore.verify(store)
    path.unlink()
    with pytest.raises(RefusedError, match="no finished backup"):
        restore.verify(store)


def test_another_address_is_refused_by_both_names(tmp_path: Path) -> None:
    manifest = restore.finished(made(tmp_path))
    restore.refuse_other_addresses(manifest, {"hdfs": "hdfs://here:8020/warehouse"})
    with pytest.raises(RefusedError, match=r"hdfs://here:8020/warehouse.*hdfs://there:8020/warehouse"):
        restore.refuse_other_addresses(manifest, {"hdfs": "hdfs://there:8020/warehouse"})


def test_what_is_copied_is_known_by_length_and_checksum_also_after_a_kill(tmp_path: Path) -> None:
    made(tmp_path)
    other = replace(FILE, path="raw/t/2-b/part-0.parquet")
    store = Store(tmp_path)
    store.path(other).parent.mkdir(parents=True)
    store.path(other).write_bytes(b"abc")
    # A run that was killed has noted one file, and half of another.
    (tmp_path / backup.JOURNAL).write_text(backup._line(other) + backup._line(FILE)[:20])
    store.recall()
    assert store.is_copied(FILE, "MD5 x") == FILE
    assert store.is_copied(other, "MD5 x") == other
    assert store.is_copied(FILE, "MD5 y") is None
    assert store.is_copied(replace(FILE, length=4), "MD5 x") is None
    store.path(FILE).unlink()
    assert store.is_copied(FILE, "MD5 x") is None


def test_what_a_finished_backup_does_not_hold_is_removed(tmp_path: Path) -> None:
    store = made(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "hdfs" / "raw" / "gone").mkdir()
    for name in ("hdfs/raw/gone/part", "postgres/mlflow-0.dump", "files-0.jsonl", backup.JOURNAL, "hdfs/raw/t/x.partial"):
        (tmp_path / name).write_text("old")
    store.remove_others(restore.finished(store))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "hdfs" / "raw" / "gone").exists()
    restore.verify(store)


def test_a_folder_that_holds_something_else_or_would_be_reset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RefusedError, match="no backup"):
        backup.prepared(tmp_path)
    with pytest.raises(RefusedError, match="reset removes"):
        backup.prepared(settings().data_dir / "backup")
    assert backup.prepared(tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = backup.prepared(tmp_path / "backup")
    with backup.store(folder), pytest.raises(BusyError, match="another backup"), backup.store(folder):
        pass


def test_a_manifest_reads_back_and_names_no_secret(tmp_path: Path) -> None:
    manifest = restore.finished(made(tmp_path))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert set(json.loads(manifest.to_json())["dumps"][0]) == {"database", "file", "bytes", "sha256"}


def test_every_writer_is_locked_and_personal_columns_by_the_lock_of_their_table() -> None:
    names = backup.lock_names(["raw.customers", "core.customers_personal", "core.probe", "mart.fraud_daily"])
    assert names[:4] == ["raw.customers", "raw.terminals", "raw.transactions", "raw.fraud_reports"]
    assert "core.customers_personal" not in names
    assert {"raw.events", "core.customers", "core.probe", "feature.transactions", "mart.predictions", "mart.fraud_daily"} <= set(names)
    assert len(names) == len(set(names))


def test_a_missing_program_of_postgres_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "postgres_bin", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RefusedError, match=r"there is no pg_dump.*postgresql-client"):
        machine.postgres_program("pg_dump")
    (tmp_path / "pg_dump").touch()
    assert machine.postgres_program("pg_dump") == tmp_path / "pg_dump"
