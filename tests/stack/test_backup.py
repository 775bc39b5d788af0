"""Backup and restore on the real servers: what comes back is what was there, killed or not, and a damaged backup touches nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl import backup, ops, restore, sql_server
from etl.backup import Manifest
from etl.databases import connect
from etl.errors import RefusedError
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.storage import storage
from ml import registry
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.stack.test_main_job import TABLES, clear, fill, load, transaction

BACKUP = {
    "before the first file": Step("etl.backup:Copier.copy", "before"),
    "among the files": Step("etl.backup:write_local", "after", "core/transactions"),
    "before a dump": Step("etl.backup:dump", "before", "warehouse"),
    "before the manifest": Step("etl.backup:write_local", "before", "manifest.json"),
    "after the manifest": Step("etl.backup:Store.remove_others", "before"),
}
BACKING_UP = """
    from pathlib import Path
    from etl import backup, ops
    with backup.store(Path({folder!r})) as store, ops.run("backup") as run:
        backup.backup(store, run)
"""
RESTORE = {
    "before the first file": Step("etl.restore:bring_files", "before"),
    "among the files": Step("etl.trees:HdfsTree.write", "after", "core/transactions"),
    "after the files": Step("etl.restore:bring_files", "after"),
    "after the source": Step("etl.backup:run_program", "before", "mlflow"),
    "before the metastore": Step("etl.backup:run_program", "before", "metastore"),
    "while Postgres takes the metastore": Step("etl.backup:run_program", 0.2, "metastore"),
    # Postgres has taken it by now, killed or not.
    "before the mark goes": Step("etl.storage:storage().delete", "before", "_restoring"),
}
RESTORING = """
    from pathlib import Path
    from etl import backup, restore
    with backup.store(Path({folder!r})) as store:
        restore.restore(store)
"""


def verb(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "bash" / f"{name}.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def done(name: str, *arguments: object) -> str:
    ran = verb(name, *arguments)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def taken(folder: Path, run: ops.Run) -> Manifest:
    with backup.store(backup.prepared(folder)) as store:
        return backup.backup(store, run)


def inodes(folder: Path) -> dict[str, int]:
    """The files of a backup that are copies, by what cannot stay when one is written again."""
    return {str(path): path.stat().st_ino for path in (folder / "hdfs").rglob("*") if path.is_file()}


def verified(folder: Path) -> Manifest:
    with backup.store(folder) as store:
        return restore.verify(store)


@pytest.fixture(scope="module")
def loaded(stack: None) -> Iterator[None]:
    """The small bank of the main job, loaded; tests add to it."""
    with sql_server.session() as hive, ops.run("test") as run:
        clear(hive)
        fill()
        load(hive, run, "full")
        yield
        clear(hive)


@pytest.mark.slow
def test_the_second_backup_copies_only_what_is_new(loaded: None, hive: Session, run: ops.Run, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    first = taken(folder, run)
    before = inodes(folder)
    transaction(10_001, 1, 1, 41 * 86_400, 100)
    load(hive, run)
    second = taken(folder, run)
    after = inodes(folder)
    assert {name: inode for name, inode in after.items() if name in before} == before
    assert len(after) == second.file_count > first.file_count
    assert second.tables["core.transactions"] == first.tables["core.transactions"] + 1
    assert verified(folder) == second
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_backup_killed_at_any_step_leaves_the_one_before_and_is_continued(
    loaded: None, hive: Session, run: ops.Run, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    known = taken(folder, run)
    for number, (what, step) in enumerate(BACKUP.items(), 10_100):
        transaction(number, 2, 2, 42 * 86_400 + number, 200)
        load(hive, run)
        killed_at(step, BACKING_UP.format(folder=str(folder)))
        found = verified(folder)
        assert (found == known) == (what != "after the manifest"), what
        known = taken(folder, run)
        assert verified(folder) == known, what
        assert known.tables["core.transactions"] == known.tables["raw.transactions"]
        assert not (folder / backup.JOURNAL).exists()


@pytest.mark.slow
def test_what_a_dead_run_commits_meanwhile_lets_the_dump_be_taken_again(
    loaded: None, hive: Session, run: ops.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped: list[str] = []
    original = backup.dump

    def late(folder: Path, database: str, stamp: str) -> backup.Dump:
        dumped.append(database)
        made = original(folder, database, stamp)
        if dumped == ["metastore"]:
            # As the server does for a run that was killed: nobody holds its lock.
            hive.run("INSERT INTO core.terminals (terminal_id) VALUES (-1)")
        return made

    monkeypatch.setattr(backup, "dump", late)
    try:
        manifest = taken(tmp_path / "backup", run)
        assert dumped.count("metastore") == 2
        assert manifest.pointers == backup.pointers()[0]
        assert manifest.tables["core.terminals"] == 31
    finally:
        hive.run("DELETE FROM core.terminals WHERE terminal_id = -1")


@pytest.mark.slow
def test_a_file_that_is_being_written_is_left_out(loaded: None, run: ops.Run, tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()
    path = f"{settings().warehouse_path}/raw/transactions/999999-open/part-00.parquet"

    def content() -> Iterator[bytes]:
        yield b"x" * 100_000
        begun.set()
        ended.wait(120)
        yield b"y"

    writing = threading.Thread(target=lambda: storage().write(path, data=content()))
    writing.start()
    try:
        assert begun.wait(30)
        taken(tmp_path / "backup", run)
        assert not list((tmp_path / "backup").rglob("999999-open/*"))
        verified(tmp_path / "backup")
    finally:
        ended.set()
        writing.join()
        storage().delete(path.rsplit("/", 1)[0], recursive=True)


@pytest.mark.slow
def test_a_damaged_backup_and_a_stack_that_moved_on_are_refused_untouched(
    loaded: None, hive: Session, run: ops.Run, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    taken(folder, run)
    transaction(10_201, 3, 3, 43 * 86_400, 300)
    load(hive, run)
    before = everything(hive), backup.pointers(), listed()
    with backup.store(folder) as store, pytest.raises(RefusedError, match=r"holds data already \(\d+ tables of Hive"):
        restore.restore(store)
    victim = max((folder / "hdfs").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with backup.store(folder) as store, pytest.raises(RefusedError, match=f"1 of .* damaged or missing .*{victim.name}"):
        restore.restore(store, force=True)
    assert (everything(hive), backup.pointers(), listed()) == before
    assert verb("restore", folder, "--verify").returncode == 3
    victim.unlink()
    taken(folder, run)
    verified(folder)


@pytest.mark.slow
def test_files_lost_in_hdfs_come_back_while_the_metastore_stands(loaded: None, hive: Session, run: ops.Run, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    manifest = taken(folder, run)
    before, places = everything(hive), listed()
    storage().delete(f"{settings().warehouse_path}/core/customers_personal", recursive=True)
    storage().delete(f"{settings().warehouse_path}/raw/transactions", recursive=True)
    with backup.store(folder) as store:
        restore.restore(store)
    restore.check(manifest)
    assert everything(hive) == before
    assert listed() == places


def everything(hive: Session) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    return {name: sorted(hive.run(f"SELECT * FROM {name}"), key=repr) for name in backup.existing(hive)}


def listed() -> dict[str, tuple[str, str, str]]:
    """Owner, group and permission of everything in HDFS, and of models' files."""
    return {
        f"{entry.tree}/{entry.path}": (entry.owner, entry.group, entry.permission)
        for tree in backup.trees().values()
        for entry in tree.entries()
    }


def in_source() -> dict[str, list[tuple[object, ...]]]:
    return {table.source: sorted(rows(f"SELECT * FROM {table.source}"), key=repr) for table in TABLES}


def whole_warehouse(hive: Session, run: ops.Run) -> None:
    """The small bank loaded, corrected and swept; features, a champion and its predictions."""
    clear(hive)
    hive.run("DROP TABLE IF EXISTS mart.predictions")
    fill()
    load(hive, run, "full")
    rows("UPDATE bank.transactions SET amount = 777.77 WHERE transaction_id = 100")
    rows("DELETE FROM bank.fraud_reports WHERE transaction_id = 800")
    rows("DELETE FROM bank.transactions WHERE transaction_id = 800")
    load(hive, run)
    done("extract", "deletes")
    done("transform", "incremental")
    done("train")
    done("score")


@pytest.mark.slow
def test_a_lost_machine_comes_back_row_for_row_whenever_the_restore_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    with sql_server.session() as hive, ops.run("test") as run:
        whole_warehouse(hive, run)
        before, source = everything(hive), in_source()
    done("backup", folder, "--with-source")
    places = listed()
    champion = registry.champion()
    done("stack", "reset")
    done("stack", "up")
    refused = verb("restore", folder, "--check")
    assert refused.returncode == 5, refused.stderr

    for what, step in RESTORE.items():
        killed_at(step, RESTORING.format(folder=str(folder)))
        # Nothing is visible before all of it is there.
        if what not in ("while Postgres takes the metastore", "before the mark goes"):
            assert backup.pointers()[1] == 0, what
    done("restore", folder)
    with sql_server.session() as hive:
        assert everything(hive) == before
    assert (listed(), in_source(), registry.champion()) == (places, source, champion)
    assert len(before["mart.predictions"]) == 799
    assert rows("SELECT count(*) FROM ops.runs WHERE state = 'running'", role="etl", dbname="warehouse") == [(0,)]

    # The source is another cluster now: its clock and its transaction ids say nothing about the watermark.
    refused = verb("load", "incremental")
    assert (refused.returncode, "another server" in refused.stderr) == (3, True)
    done("load", "full")
    done("reconcile")
    goes_on(before)


@pytest.mark.slow
def test_a_lost_warehouse_comes_back_and_goes_on_with_the_source_that_stands(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    with sql_server.session() as hive, ops.run("test") as run:
        whole_warehouse(hive, run)
        before = everything(hive)
    done("backup", folder)
    lose_the_warehouse()
    done("stack", "up")
    done("restore", folder)
    with sql_server.session() as hive:
        assert everything(hive) == before
    goes_on(before)


def lose_the_warehouse() -> None:
    """HDFS and the warehouse's databases are gone, the bank's stands."""
    session = connect("postgres", "postgres")
    session.autocommit = True
    with session.cursor() as cursor:
        for database in backup.OWN:
            cursor.execute(f"DROP DATABASE {database} WITH (FORCE)")
    session.close()
    done("stack", "down")
    shutil.rmtree(settings().data_dir / "hdfs")
    shutil.rmtree(settings().data_dir / "mlflow")


def goes_on(before: dict[str, list[tuple[Any, ...]]]) -> None:
    """The next day comes as an increment, into core, features and predictions; what was decided before stays."""
    transaction(20_001, 4, 4, 44 * 86_400, 400)
    done("load", "incremental")
    done("features", "incremental")
    assert "1 predictions added" in done("score")
    done("reconcile")
    done("maintain")
    with sql_server.session() as hive:
        after = everything(hive)
        clear(hive)
        hive.run("DROP TABLE mart.predictions")
    new = [row for row in after["mart.predictions"] if row not in before["mart.predictions"]]
    assert [row[0] for row in new] == [20_001]
    assert len(after["mart.predictions"]) == len(before["mart.predictions"]) + 1
    assert len(after["core.transactions"]) == len(before["core.transactions"]) + 1
