"""The sandbox: the one place where analysts write, with a quota and an end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest

from etl import core, ops, sandbox, sql_server
from etl.errors import RefusedError, WarehouseError
from etl.settings import settings
from etl.sql_server import Session, StatementError
from etl.stack.preparation import set_quota
from etl.storage import names_in
from tests.kills import Step, killed_at

ROWS = """
SELECT * FROM VALUES
    (1, CAST(12.50 AS decimal(12, 2)), TIMESTAMP '2026-01-02 03:04:05.678901', DATE '2026-01-02', true, 'größer', CAST(0.25 AS double)),
    (2, NULL, NULL, NULL, NULL, NULL, NULL)
AS t (id, amount, transacted_at, transacted_on, is_fraud, text, share)
"""
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def empty(hive: Session) -> Iterator[None]:
    """The sandbox has no table before and after."""

    def clear() -> None:
        for name in core.existing(hive, "sandbox"):
            hive.run(f"DROP TABLE sandbox.{name}")
        sandbox.sweep(hive)

    clear()
    yield
    clear()


def is_empty(hive: Session) -> bool:
    return core.existing(hive, "sandbox") == set() and names_in(sandbox.folder()) == []


def read(statement: str) -> list[tuple[object, ...]]:
    with sql_server.session("readers") as readers:
        return readers.run(statement)


def test_a_table_has_what_the_select_answered_and_goes_when_it_is_dropped(hive: Session, run: ops.Run) -> None:
    assert sandbox.create("mine", ROWS, run) == 2
    assert read("SELECT * FROM sandbox.mine ORDER BY id") == read(ROWS)
    types = [row[1] for row in read("DESCRIBE sandbox.mine")]
    assert types == ["int", "decimal(12,2)", "timestamp", "date", "boolean", "string", "double"]
    with pytest.raises(RefusedError, match=r"sandbox.mine is there already; choose another name, or bash/sandbox.sh drop mine first"):
        sandbox.create("mine", ROWS, run)
    sandbox.drop("mine", run)
    assert is_empty(hive)
    with pytest.raises(RefusedError, match=r"there is no table sandbox.mine"):
        sandbox.drop("mine", run)


def test_an_answer_without_rows_is_a_table_without_rows(run: ops.Run) -> None:
    assert sandbox.create("none", f"{ROWS} WHERE id > 2", run) == 0
    assert read("SELECT count(*) FROM sandbox.none") == [(0,)]


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ("SELECT count(*) FROM range(3)", r"a column of the SELECT is called 'count\(1\)'; give each a name of its own"),
        ("SELECT id, id AS ID FROM range(3)", r"a column of the SELECT is called 'id'; give each a name of its own"),
        ("SELECT array(1) AS many", r"column many is of type array<int>, which the sandbox does not take; .*to_json\(many\)"),
        ("DROP TABLE sandbox.other", r"Syntax error"),
        ("SELECT raise_error('no') AS a FROM range(3)", r"no"),
    ],
)
def test_what_cannot_be_a_table_is_refused_and_leaves_nothing(select: str, sentence: str, hive: Session, run: ops.Run) -> None:
    with pytest.raises(WarehouseError, match=sentence):
        sandbox.create("mine", select, run)
    assert is_empty(hive)


def test_personal_columns_stay_closed(hive: Session, run: ops.Run) -> None:
    place = f"{settings().hdfs_uri}{settings().warehouse_path}/core/customers_personal/fence"
    hive.run(f"CREATE EXTERNAL TABLE ops.personal (a int) STORED AS PARQUET LOCATION '{place}'")
    try:
        hive.run("INSERT INTO ops.personal VALUES (1)")
        with pytest.raises(StatementError, match=r"Permission denied: user=reader"):
            sandbox.create("mine", "SELECT * FROM ops.personal", run)
    finally:
        hive.run("DROP TABLE ops.personal")
        from etl.storage import storage

        storage().delete(f"{settings().warehouse_path}/core/customers_personal/fence", recursive=True)
    assert is_empty(hive)


@pytest.mark.parametrize("is_known_before", [True, False])
def test_a_table_that_the_quota_has_no_room_for_is_refused_and_leaves_nothing(
    is_known_before: bool, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_quota(sandbox.folder(), 9 * MEGABYTE)
    if not is_known_before:
        # Somebody else takes the room meanwhile: HDFS says so itself.
        monkeypatch.setattr(sandbox, "_free_bytes", lambda: 2**40)
    try:
        with pytest.raises(RefusedError, match=r"sandbox.mine has no room in the .* MB .*bash/sandbox.sh drop what nobody needs"):
            sandbox.create("mine", "SELECT id, sha2(CAST(id AS string), 256) AS text FROM range(400000)", run)
        assert is_empty(hive)
        assert sandbox.create("mine", "SELECT 1 AS a", run) == 1
    finally:
        set_quota(sandbox.folder(), settings().sandbox_quota_mb * MEGABYTE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        Step("etl.sandbox:_write", "after"),
        Step("etl.sandbox:_upload", "after"),
        Step("etl.sql_server:Session.run_file", "after", "sandbox/create.hql"),
    ],
    ids=["written", "uploaded", "registered"],
)
def test_killed_in_the_middle_it_is_whole_or_not_there_and_runs_again(step: Step, hive: Session, run: ops.Run) -> None:
    killed_at(step, f"from etl import ops, sandbox\nwith ops.run('test') as run:\n    sandbox.create('mine', {ROWS!r}, run)")
    if step.matching:
        assert read("SELECT count(*) FROM sandbox.mine") == [(2,)]
        sandbox.drop("mine", run)
    assert core.existing(hive, "sandbox") == set()
    assert sandbox.create("mine", ROWS, run) == 2
    assert len(names_in(sandbox.folder())) == 1
    assert read("SELECT count(*) FROM sandbox.mine") == [(2,)]


def test_a_table_is_removed_when_it_is_old(hive: Session, run: ops.Run) -> None:
    for name, age_days in (("old", 30.1), ("young", 29.9)):
        sandbox.create(name, "SELECT 1 AS a", run)
        made_at = dt.datetime.now(dt.UTC) - dt.timedelta(days=age_days)
        hive.run(f"ALTER TABLE sandbox.{name} SET TBLPROPERTIES ('sandbox.created_at' = '{made_at:%Y-%m-%dT%H:%M:%SZ}')")
    assert sandbox.expire(hive, run, 30) == ["old"]
    assert core.existing(hive, "sandbox") == {"young"}
    assert [name.split("-")[0] for name in names_in(sandbox.folder())] == ["young"]
