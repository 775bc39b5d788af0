"""Folding the stream's files of raw.events: each event stays there once, for readers and for micro-batches that come again."""

from __future__ import annotations

import datetime as dt
import subprocess
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from api.tables import _write_events
from etl import events, ops, sql_server
from etl.errors import WarehouseError
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.storage import names_in, storage
from tests.kills import Step, killed_at
from tests.postgres import rows

DAY = "2026-01-01"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
QUERY = "0b3c6d2e-1111-4222-8333-444455556666"
FOLD = """
    from etl import events, ops, sql_server
    with sql_server.session() as hive, ops.run("test") as run:
        events.maintain(hive, run)
"""


def write(run: ops.Run, number: int, day: str = DAY, query: str = QUERY) -> None:
    """Write a micro-batch of two events as the stream job does."""
    noon = dt.datetime.combine(dt.date.fromisoformat(day), dt.time(12), dt.UTC)
    messages = pa.table(
        {
            "partition": pa.array([0, 1], pa.int32()),
            "offset": pa.array([number, number]),
            "timestamp": pa.array([noon + dt.timedelta(seconds=number, microseconds=1)] * 2, pa.timestamp("us", "UTC")),
            "key": pa.array([b"2", None]),
            "value": pa.array([f'{{"transaction_id": {number}}}'.encode(), b"\xff"]),
        }
    )
    assert _write_events(messages, f"{query}-{number}", run) == [day]


def add(hive: Session, day: str) -> None:
    hive.run(f"ALTER TABLE raw.events ADD PARTITION (received_on = DATE '{day}')")


def wanted(*numbers: int) -> list[tuple[object, ...]]:
    """The rows of micro-batches, in the order of `there`."""
    return [
        row
        for number in sorted(numbers)
        for at in [f"2026-01-01 12:00:{number:02}.000001"]
        for row in [(number, 0, at, b"2", f'{{"transaction_id": {number}}}'.encode()), (number, 1, at, None, b"\xff")]
    ]


def there(hive: Session) -> list[tuple[object, ...]]:
    return hive.run(
        "SELECT topic_offset, topic_partition, CAST(received_at AS STRING), message_key, message FROM raw.events "
        f"WHERE received_on = DATE '{DAY}' ORDER BY 1, 2"
    )


def files(hive: Session, day: str = DAY) -> list[str]:
    """The files that readers of a day read, the folded ones without the name of their run."""
    found = {path[0].rsplit("/", 1)[-1] for path in hive.run(f"SELECT input_file_name() FROM raw.events WHERE received_on = DATE '{day}'")}
    return sorted("folded" if name.startswith("folded_") else name for name in found)


def file(number: int, query: str = QUERY) -> str:
    return f"{query}-{number}.parquet"


@pytest.fixture
def table(hive: Session) -> Iterator[None]:
    """An empty raw.events."""

    def remove() -> None:
        hive.run("DROP TABLE IF EXISTS raw.events")
        storage().delete(events.root(), recursive=True)

    remove()
    hive.run_file("hive/raw/events/create.hql", location=f"{settings().hdfs_uri}{events.root()}")
    yield
    remove()


@pytest.fixture
def day(table: None, hive: Session, run: ops.Run) -> None:
    """A day that is over, of ten micro-batches."""
    for number in range(10):
        write(run, number)
    add(hive, DAY)


def test_files_of_a_day_that_is_over_become_one_and_the_newest_and_every_event_stays(day: None, hive: Session, run: ops.Run):
    assert there(hive) == wanted(*range(10))
    events.maintain(hive, run)
    assert there(hive) == wanted(*range(10))
    assert files(hive) == [file(9), "folded"]
    # Nothing is left to be folded.
    events.maintain(hive, run)
    assert sorted(events._folders()[DAY]) == [0, 1]


def test_the_verb_folds_the_tables_that_it_is_told(day: None, hive: Session):
    rows(
        "INSERT INTO ops.notifications (idempotency_key, channel, state, payload, ended_at) "
        "VALUES ('alert-1', 'verb', 'sent', '{}', clock_timestamp() - interval '61 days')",
        role="etl",
        dbname="warehouse",
    )
    kept = "SELECT count(*) FROM ops.notifications WHERE channel = 'verb'"
    for tables, files_now, notifications in (["core.nothing"], 10, 1), (["raw.events"], 2, 1), (["ops.notifications"], 2, 0):
        ran = subprocess.run([ROOT / "bash" / "maintain.sh", *tables], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert len(files(hive)) == files_now
        assert rows(kept, role="etl", dbname="warehouse") == [(notifications,)]
    assert there(hive) == wanted(*range(10))


def test_a_micro_batch_that_comes_again_after_its_day_was_folded_adds_nothing(day: None, hive: Session, run: ops.Run):
    events.maintain(hive, run)
    write(run, 9)
    assert there(hive) == wanted(*range(10))


def test_an_event_that_arrives_after_its_day_was_folded_is_there_at_once_and_is_folded_with_the_next(
    day: None, hive: Session, run: ops.Run
):
    events.maintain(hive, run)
    for number in range(10, 16):
        write(run, number)
        assert there(hive) == wanted(*range(number + 1))
    events.maintain(hive, run)
    assert there(hive) == wanted(*range(16))
    assert files(hive) == [file(15), "folded", "folded"]
    write(run, 15)
    assert there(hive) == wanted(*range(16))


def test_the_newest_micro_batch_of_each_query_keeps_its_file(day: None, hive: Session, run: ops.Run):
    other = "9a3c6d2e-1111-4222-8333-444455556666"
    write(run, 20, query=other)
    events.maintain(hive, run)
    assert files(hive) == [file(9), file(20, other), "folded"]
    assert there(hive) == wanted(*range(10), 20)


def test_the_present_day_is_folded_once_it_has_many_files(table: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "TODAY_FILES", 7)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    for number in range(7):
        write(run, number, today)
    add(hive, today)
    events.maintain(hive, run)
    assert files(hive, today) == [file(number) for number in range(7)]
    write(run, 7, today)
    events.maintain(hive, run)
    assert files(hive, today) == [file(7), "folded"]
    assert hive.run("SELECT count(*), count(DISTINCT topic_offset) FROM raw.events") == [(16, 8)]


def test_a_closed_folder_stays_for_whoever_reads_it_and_is_removed_hours_later(
    day: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
):
    events.maintain(hive, run)
    events.maintain(hive, run)
    assert len(events._data(events.folder(DAY, 0))) == 10
    monkeypatch.setattr(events, "CLOSED_HOURS", 0)
    events.maintain(hive, run)
    assert events._folders() == {DAY: [1]}
    write(run, 9)
    write(run, 10)
    assert there(hive) == wanted(*range(11))


def test_a_reader_sees_every_event_once_at_any_moment(day: None, hive: Session, run: ops.Run):
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def read() -> None:
        with sql_server.session() as reader:
            while not stop.is_set():
                seen.append(reader.run("SELECT count(*), count(DISTINCT topic_offset) FROM raw.events")[0])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(10, 13):
            write(run, number)
            events.fold(hive, DAY, run, least=1)
    finally:
        stop.set()
        thread.join()
    assert events._folders() == {DAY: [0, 1, 2, 3]}
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert {2 * offsets - rows for rows, offsets in seen} == {0}
    assert there(hive) == wanted(*range(13))


def test_a_folder_with_other_events_is_not_moved_to(day: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch):
    # A file is lost on the way.
    monkeypatch.setattr(events, "_copy", lambda *_: None)
    with pytest.raises(WarehouseError, match=r"holds 18 events where .* holds 20, or others; the partition stays where it is, run again"):
        events.maintain(hive, run)
    assert there(hive) == wanted(*range(10))
    monkeypatch.undo()
    events.maintain(hive, run)
    assert there(hive) == wanted(*range(10))
    assert files(hive) == [file(9), "folded"]


STEPS = {
    "before the list of files": Step("etl.storage:storage().write", "before", "_folded_"),
    "before the first events": Step("pyarrow.parquet:ParquetWriter.write_table", "before"),
    "before the end of the file": Step("pyarrow.parquet:ParquetWriter.close", "before"),
    "before the file has its name": Step("etl.storage:storage().rename", "before", "folded_"),
    "after the file has its name": Step("etl.storage:storage().rename", "after", "folded_"),
    "before the newest are copied": Step("etl.events:_copy", "before"),
    "after the newest are copied": Step("etl.events:_copy", "after"),
    "while both are read": Step("etl.sql_server:Session.run_file", 0.05, "compare.hql"),
    "before the partition moves": Step("etl.sql_server:Session.run_file", "before", "set_location.hql"),
    "while the partition moves": Step("etl.sql_server:Session.run_file", 0.02, "set_location.hql"),
    "after the partition has moved": Step("etl.sql_server:Session.run_file", "after", "set_location.hql"),
    "after the old folder is closed": Step("etl.events:_close", "after"),
}


QUICK = ("before the end of the file", "while the partition moves", "after the partition has moved")


@pytest.mark.parametrize(
    "step", [pytest.param(step, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, step in STEPS.items()]
)
def test_a_fold_killed_anywhere_loses_and_doubles_nothing_and_the_next_one_goes_on(day: None, hive: Session, run: ops.Run, step: Step):
    killed_at(step, FOLD)
    assert there(hive) == wanted(*range(10))
    # The stream goes on, its newest micro-batch once more.
    for number in (9, 10, 11):
        write(run, number)
    assert there(hive) == wanted(*range(12))
    events.maintain(hive, run)
    assert there(hive) == wanted(*range(12))
    assert len(files(hive)) <= 4
    write(run, 11)
    assert there(hive) == wanted(*range(12))
    assert [events.folder(DAY, 1)] == events.open_folders(DAY)


def test_a_move_that_the_server_makes_after_its_run_died_shows_what_came_meanwhile(day: None, hive: Session, run: ops.Run):
    killed_at(STEPS["before the partition moves"], FOLD)
    write(run, 10)
    hive.run_file("hive/raw/events/set_location.hql", day=DAY, location=f"{settings().hdfs_uri}{events.folder(DAY, 1)}")
    assert there(hive) == wanted(*range(11))
    events.maintain(hive, run)
    write(run, 11)
    assert there(hive) == wanted(*range(12))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_removal_of_closed_folders_killed_and_done_again_leaves_what_is_read(
    day: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch, when: str
):
    events.maintain(hive, run)
    killed_at(Step("etl.storage:storage().delete", when), FOLD.replace("events.maintain", "events.CLOSED_HOURS = 0; events.maintain"))
    assert there(hive) == wanted(*range(10))
    monkeypatch.setattr(events, "CLOSED_HOURS", 0)
    events.maintain(hive, run)
    assert names_in(events.root()) == [f"{DAY}-1"]
    assert there(hive) == wanted(*range(10))
