"""SIGKILL at every named step from the first byte to the published partition and to merged core, then the same again.

After each kill a reader sees the old or the new state; the same commands once more bring everything (A to F of the
architecture page).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from etl import batches, core, ops, sql_server
from etl.extract import extract
from etl.maintain import maintain
from etl.reconcile import reconcile
from etl.sql_server import Session
from etl.storage import storage
from etl.sweep import sweep
from etl.tables import Table
from etl.transform import take
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.stack.test_extract import PROBE, clear, fill, in_core, in_raw, in_source, load, probe, set_up

__all__ = ["probe"]

EXTRACT = {
    "before the first byte": Step("etl.streams:write", "before"),
    "after the first bytes": Step("pyarrow.parquet:ParquetWriter.close", "before"),
    "after the files": Step("etl.streams:write", "after"),
    "while they are read back": Step("etl.streams:content_of", "before"),
    "after the manifest": Step("etl.batches:write_manifest", "after"),
    "after the tables are made": Step("etl.batches:ensure_tables", "after"),
    "before the partition": Step("etl.sql_server:Session.run", "before", "ADD PARTITION"),
    "while Hive adds the partition": Step("etl.sql_server:Session.run", 0.01, "ADD PARTITION"),
    "after the partition, before it is read": Step("etl.sql_server:Session.run", "after", "ADD PARTITION"),
    "while Hive reads it": Step("etl.sql_server:Session.run", 0.05, "AS outline"),
    "after Hive has read it": Step("etl.sql_server:Session.run", "after", "AS outline"),
    "after the record": Step("etl.extract:record", "after"),
    "while clearing": Step("etl.storage:storage().delete", "before"),
}
CORE = {
    "before the commit": Step("etl.sql_server:Session.run_file", "before"),
    "while Iceberg commits": Step("etl.sql_server:Session.run_file", 0.3),
    "after the commit": Step("etl.sql_server:Session.run_file", "after"),
}
COMMITS = {"incremental": "merge.hql.j2", "full": "replace.hql.j2", "deletes": "delete.hql.j2"}
PUBLISHED = {"after the partition, before it is read", "while Hive reads it", "after Hive has read it", "after the record"}


@pytest.fixture(scope="module")
def grown(stack: None) -> Iterator[Table]:
    """A table in raw and core that every test leaves whole, and larger."""
    with sql_server.session() as hive, ops.run("test") as run:
        set_up(hive)
        fill(1, 300)
        load(hive, run, "full")
        yield PROBE
        clear(hive)


def change() -> int:
    """Add ten rows with keys of their own and change one; return how many rows there are then."""
    ((last,),) = rows("SELECT max(probe_id) FROM bank.probe")
    fill(int(str(last)) + 1, int(str(last)) + 10)
    rows("UPDATE bank.probe SET amount = amount + 1 WHERE probe_id = 7")
    return len(in_source())


def expect_all(hive: Session, run: ops.Run) -> None:
    """Say that core is the source, that nothing is left over, nothing is new, and the marks are where the newest batch is."""
    assert in_core(hive) == in_source()
    assert hive.run("SELECT count(*), count(DISTINCT probe_id) FROM core.probe") == [(len(in_source()),) * 2]
    state = batches.published(hive, [PROBE])["probe"]
    assert len(state.folders["full"]) == len(state.rows)
    assert extract([PROBE], "incremental", run, hive) == []
    (result,) = reconcile([PROBE], run, hive)
    assert result.source_rows == result.loaded_rows == len(in_source())
    marks = core.marks(hive, core.target_names(PROBE))
    assert {mark.batch for mark in marks.values()} == {batches.published(hive, [PROBE])["probe"].newest}
    assert all(not taken.batches for taken in take(hive, PROBE, run))


def extracting(kind: str) -> str:
    return f"""
        from etl import ops, sql_server
        from etl.extract import extract
        from tests.stack.test_extract import PROBE
        with ops.run("test") as run, sql_server.session() as hive:
            extract([PROBE], {kind!r}, run, hive)
    """


TAKING = """
    from etl import ops, sql_server
    from etl.transform import take
    from tests.stack.test_extract import PROBE
    with ops.run("test") as run, sql_server.session() as hive:
        take(hive, PROBE, run)
"""


def litter() -> None:
    """Leave what a killed run leaves, for the next one to clear."""
    storage().write(f"{batches.root('probe', 'full')}/999999-killed/part-00-000.parquet", data=b"rubbish")


ALWAYS = (
    "after the files",
    "before the partition",
    "while Hive adds the partition",
    "after the partition, before it is read",
    "after the record",
)
"""Steps next to the one commit; the others are killed at by bash/test_all.sh."""


def seldom(steps: Iterable[str], always: tuple[str, ...]) -> list[Any]:
    """Steps as parameters; all but some are slow."""
    return [step if step in always else pytest.param(step, marks=pytest.mark.slow) for step in steps]


@pytest.mark.parametrize("step", seldom([step for step in EXTRACT if step != "after the tables are made"], ALWAYS))
def test_an_increment_killed_at_any_step_and_run_again(grown: Table, hive: Session, run: ops.Run, step: str) -> None:
    core_before, raw_before = in_core(hive), in_raw(hive)
    change()
    if step == "while clearing":
        litter()
    killed_at(EXTRACT[step], extracting("incremental"))
    assert in_core(hive) == core_before
    new = [number for number in in_raw(hive) if number not in raw_before]
    if step != "while Hive adds the partition":
        assert len(new) == (step in PUBLISHED)
    assert len(extract([grown], "incremental", run, hive)) == (0 if new else 1)
    (number,) = (number for number in in_raw(hive) if number not in raw_before)
    assert hive.run(f"SELECT count(*), max(amount) FROM raw.probe WHERE batch = {number}") == [(11, max(in_source().values()))]
    state = batches.published(hive, [PROBE])["probe"]
    assert len(state.folders["full"]) == len(state.rows)
    if step == "while clearing":
        # The last of them: all that these tests left takes its way into core.
        take(hive, grown, run)
        expect_all(hive, run)


@pytest.mark.parametrize("step", seldom(CORE, ("while Iceberg commits",)))
@pytest.mark.parametrize("kind", COMMITS)
def test_core_killed_at_any_step_and_run_again(grown: Table, hive: Session, run: ops.Run, kind: str, step: str) -> None:
    before = in_core(hive)
    if kind == "deletes":
        rows("DELETE FROM bank.probe WHERE probe_id = (SELECT min(probe_id) FROM bank.probe)")
        assert sweep([grown], run, hive)
    else:
        change()
        extract([grown], kind, run, hive)
    killed_at(dataclasses.replace(CORE[step], matching=COMMITS[kind]), TAKING)
    # Old or new, never part of one; which of the two is certain but while the server was at work.
    seen = in_core(hive)
    if step != "while Iceberg commits":
        assert seen == (before if step == "before the commit" else in_source())
    assert seen in (before, in_source())
    take(hive, grown, run)
    if step == "while Iceberg commits":
        # Newer snapshots that name no batch; the mark outlives the expiry of what no tag holds.
        for _ in range(2):
            hive.run("INSERT INTO core.probe (probe_id) VALUES (-1)")
            hive.run("DELETE FROM core.probe WHERE probe_id = -1")
        maintain(hive, "core", "probe", run, keep_days=0)
        assert hive.run("SELECT count(*) FROM core.probe.snapshots WHERE summary['batch'] IS NOT NULL") == [(1,)]
    expect_all(hive, run)


# From here on with a table of each test's own: it takes the place of the grown one.

FROM_NOTHING = (
    "before the first byte",
    "after the files",
    "after the manifest",
    "after the tables are made",
    "after the partition, before it is read",
    "after Hive has read it",
    "while clearing",
)


@pytest.mark.parametrize("step", seldom(FROM_NOTHING, ALWAYS))
def test_the_first_extract_killed_at_any_step_and_run_again(probe: Table, hive: Session, run: ops.Run, step: str) -> None:
    fill(1, 50)
    if step == "while clearing":
        litter()
    killed_at(EXTRACT[step], extracting("full"))
    assert hive.run("SHOW TABLES IN core LIKE 'probe*'") == []
    (batch,) = extract([probe], "full", run, hive)
    assert hive.run("SELECT count(*), max(amount) FROM raw.probe WHERE batch = " + str(batch.number)) == [(50, max(in_source().values()))]
    assert len(batches.published(hive, [probe])["probe"].folders["full"]) == len(in_raw(hive))
    if step == "while clearing":
        take(hive, probe, run)
        expect_all(hive, run)


@pytest.mark.parametrize("when", ["before", "after"])
def test_core_killed_beside_the_making_of_its_table(probe: Table, hive: Session, run: ops.Run, when: str) -> None:
    fill(1, 50)
    extract([probe], "full", run, hive)
    killed_at(Step("etl.core:ensure_table", "before" if when == "before" else "after"), TAKING)
    assert not hive.run("SHOW TABLES IN core LIKE 'probe'") or in_core(hive) == {}
    take(hive, probe, run)
    expect_all(hive, run)
