"""Extract, publish, sweep, rewind, repair and reconcile on the real servers."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from etl import batches, ops, sql_server
from etl.batches import Batch
from etl.errors import BusyError, ReconciliationError, RefusedError, WarehouseError
from etl.extract import extract
from etl.failures import SeveralError
from etl.reconcile import reconcile
from etl.settings import ROOT
from etl.sql_server import Session
from etl.storage import storage
from etl.sweep import sweep
from etl.tables import Table
from etl.transform import take
from etl.watermark import rewind, watermarks
from tests.postgres import rows

# A table of this file's own: one of each difficult type, keys with gaps, a day to reconcile by.
PROBE = Table(
    "probe",
    "bank",
    ("probe_id",),
    "updated_at",
    time="happened_at",
    personal=("email",),
    decimals={"free": "decimal(38,10)"},
    lag_seconds=0,
)
CREATE = """
CREATE TABLE bank.probe (
    probe_id bigint PRIMARY KEY, happened_at timestamptz, amount numeric(12,2), free numeric, email text, note text,
    small smallint, born date, local timestamp, yes boolean, single real, pair double precision, raw bytea, doc jsonb,
    tags text[], token uuid, updated_at timestamptz NOT NULL
);
CREATE TRIGGER set_updated_at BEFORE INSERT OR UPDATE ON bank.probe FOR EACH ROW EXECUTE FUNCTION bank.set_updated_at();
ALTER TABLE bank.probe ENABLE ALWAYS TRIGGER set_updated_at;
CREATE INDEX ON bank.probe (updated_at);
"""


@pytest.fixture
def probe(hive: Session) -> Iterator[Table]:
    """An empty source table, with nothing in raw and core."""
    set_up(hive)
    yield PROBE
    clear(hive)


def set_up(hive: Session) -> None:
    clear(hive)
    rows(CREATE)


def clear(hive: Session) -> None:
    rows("DROP TABLE IF EXISTS bank.probe")
    for name in ("raw.probe", "raw.probe_deleted", "core.probe", "core.probe_personal"):
        hive.run(f"DROP TABLE IF EXISTS {name}")
    for kind in ("full", "deletes"):
        storage().delete(batches.root("probe", kind), recursive=True)
    rows("DELETE FROM ops.rejects WHERE table_name = 'probe'", role="etl", dbname="warehouse")


def fill(first: int, last: int, step: int = 1) -> None:
    rows(
        "INSERT INTO bank.probe (probe_id, happened_at, amount, email, note, updated_at) "
        "SELECT g, timestamptz '2018-04-01 12:00Z' + g * interval '1 hour', g * 1.01, g || '@example.org', 'Grüße ' || g, now() "
        "FROM generate_series(%s, %s, %s) AS g",
        first,
        last,
        step,
    )


def in_raw(hive: Session) -> list[int]:
    return sorted(batches.published(hive, [PROBE])["probe"].rows)


def in_core(hive: Session) -> dict[int, Decimal]:
    return dict(hive.run("SELECT probe_id, amount FROM core.probe"))


def in_source() -> dict[object, object]:
    return dict(rows("SELECT probe_id, amount FROM bank.probe"))  # type: ignore[arg-type]


def load(hive: Session, run: ops.Run, kind: str = "incremental") -> list[Batch]:
    found = extract([PROBE], kind, run, hive)
    take(hive, PROBE, run)
    return found


def test_full_then_increments_end_equal_and_nothing_new_publishes_nothing(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 100)
    (full,) = load(hive, run, "full")
    assert (full.number, full.kind, full.row_count, full.range_from) == (1, "full", 100, None)
    assert extract([probe], "incremental", run, hive) == []
    fill(200, 210)
    rows("UPDATE bank.probe SET amount = 0.01 WHERE probe_id = 5")
    (increment,) = load(hive, run)
    assert (increment.number, increment.row_count, increment.range_from) == (2, 12, full.next_from)
    assert increment.key_ranges == ((5, 5), (200, 210))
    assert in_core(hive) == in_source()
    (result,) = reconcile([probe], run, hive)
    assert (result.source_rows, result.loaded_rows, result.rejected) == (111, 111, 0)


def test_manifest_says_where_the_batch_comes_from(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 3)
    (written,) = extract([probe], "full", run, hive)
    assert batches.read(written.folder) == written
    assert written.server.database == "bank"
    assert written.run_id == run.run_id
    assert [column.name for column in written.columns][:3] == ["probe_id", "happened_at", "amount"]
    assert written.bytes == sum(storage().status(f"{written.folder}/{file['name']}")["length"] for file in written.files)


def test_every_type_and_extreme_is_hashed_by_hive_as_by_postgres(probe: Table, hive: Session, run: ops.Run) -> None:
    """publish compares the files with Hive, reconcile the rows of Postgres and core; besides, the values are right."""
    rows(
        """
        INSERT INTO bank.probe VALUES
        (-9223372036854775807, '0001-01-01 00:00Z', -9999999999.99, 0.0000000001, '', '|', -32768, '0001-01-01',
         '0001-01-01 00:00', false, '-0', 'NaN', '', '{}', '{}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', now()),
        (9223372036854775806, '9999-12-31 23:59:59.999999Z', 9999999999.99, -9999999999999999999999999999.9999999999,
         'x', E'\\\\x \\' " 😀', 32767, '9999-12-31', '9999-12-31 23:59:59.999999', true, 'Infinity', '5e-324', '\\x00ff',
         '{"a": [1]}', '{"x,y",NULL}', null, now()),
        (0, '1582-10-10 00:00Z', 0, 0, null, null, 0, '1582-10-10', '1582-10-10 00:00', null, '1e-45', '1.7976931348623157e308',
         null, null, null, null, now()),
        (1, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, now()),
        (2, '1969-12-31 23:59:59.999999Z', 0.07, 1, 'y', 'z', 1, '1969-12-31', '1969-12-31 23:59:59.999999', true, 0.1, 0.1,
         '\\x5c78', '[]', '{}', null, now())
        """
    )
    (batch,) = load(hive, run, "full")
    assert batch.row_count == 5
    ((amount, free, raw, at, pair),) = hive.run(
        "SELECT amount, free, lower(hex(raw)), CAST(happened_at AS STRING), CAST(pair AS STRING) FROM raw.probe "
        "WHERE probe_id = 9223372036854775806"
    )
    assert (amount, free) == (Decimal("9999999999.99"), Decimal("-9999999999999999999999999999.9999999999"))
    assert (raw, at, pair) == ("00ff", "9999-12-31 23:59:59.999999", "4.9E-324")
    (result,) = reconcile([probe], run, hive)
    assert result.loaded_rows == 5


def test_values_that_cannot_be_held_are_rejected_and_the_sum_is_right(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 5)
    rows("INSERT INTO bank.probe (probe_id, happened_at, updated_at) VALUES (6, 'infinity', now())")
    rows("INSERT INTO bank.probe (probe_id, free, updated_at) VALUES (7, 'NaN', now())")
    (batch,) = load(hive, run, "full")
    assert (batch.row_count, batch.rejected_count) == (5, 2)
    found = rows("SELECT key, column_name FROM ops.rejects WHERE table_name = 'probe' ORDER BY key", role="etl", dbname="warehouse")
    assert found == [("6", "happened_at"), ("7", "free")]
    (result,) = reconcile([probe], run, hive)
    assert (result.source_rows, result.loaded_rows, result.rejected) == (7, 5, 2)


def test_one_changed_cent_is_found_and_its_day_named_then_repaired(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 100)
    load(hive, run, "full")
    # By hand, with the trigger off: no increment can see it.
    rows("ALTER TABLE bank.probe DISABLE TRIGGER set_updated_at")
    rows("UPDATE bank.probe SET amount = amount + 0.01 WHERE probe_id = 50")
    rows("ALTER TABLE bank.probe ENABLE ALWAYS TRIGGER set_updated_at")
    assert extract([probe], "incremental", run, hive) == []
    with pytest.raises(ReconciliationError, match=r"probe, 2018-04-03: 1 changed \(50\)"):
        reconcile([probe], run, hive)
    day = dt.datetime(2018, 4, 3, tzinfo=dt.UTC)
    (batch,) = extract([probe], "repair", run, hive, repair=(day, day + dt.timedelta(days=1)))
    assert batch.kind == "repair"
    take(hive, probe, run)
    reconcile([probe], run, hive)
    assert in_core(hive) == in_source()


def test_a_changed_personal_value_is_found(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 10)
    load(hive, run, "full")
    rows("ALTER TABLE bank.probe DISABLE TRIGGER set_updated_at")
    rows("UPDATE bank.probe SET email = 'other@example.org' WHERE probe_id = 7")
    rows("ALTER TABLE bank.probe ENABLE ALWAYS TRIGGER set_updated_at")
    with pytest.raises(ReconciliationError, match=r"1 changed \(7\)"):
        reconcile([probe], run, hive)


def test_rows_that_wait_for_the_next_extract_or_sweep_are_no_difference(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 100)
    load(hive, run, "full")
    rows("DELETE FROM bank.probe WHERE probe_id IN (3, 60)")
    rows("UPDATE bank.probe SET amount = 7 WHERE probe_id = 40")
    rows("UPDATE bank.probe SET happened_at = 'infinity' WHERE probe_id = 41")
    fill(500, 510)
    (result,) = reconcile([probe], run, hive)
    assert (result.deletions_pending, result.updates_pending, result.rejects_pending) == (2, 1, 1)


def test_deleted_rows_are_swept_and_a_key_that_returns_comes_back(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(-300, 300)
    load(hive, run, "full")
    rows("DELETE FROM bank.probe WHERE probe_id IN (-300, 0, 17)")
    (gone,) = sweep([probe], run, hive)
    assert (gone.kind, gone.row_count, gone.key_ranges) == ("deletes", 3, ((-300, -300), (0, 0), (17, 17)))
    take(hive, probe, run)
    assert in_core(hive) == in_source()
    assert sweep([probe], run, hive) == []
    fill(17, 17)
    load(hive, run)
    assert in_core(hive) == in_source()


def test_truncate_is_refused_without_force(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 20)
    load(hive, run, "full")
    rows("TRUNCATE bank.probe")
    with pytest.raises(RefusedError, match=r"20 of 20 keys of bank\.probe are gone"):
        sweep([probe], run, hive)
    with pytest.raises(RefusedError, match=r"bank\.probe is empty and was not before"):
        extract([probe], "full", run, hive)
    assert len(in_core(hive)) == 20
    sweep([probe], run, hive, force=True)
    take(hive, probe, run)
    assert in_core(hive) == {}


def test_composite_text_keys_are_swept(hive: Session, run: ops.Run) -> None:
    table = dataclasses.replace(PROBE, key=("token", "note"), cursor_set_by="client", time=None, personal=())
    clear(hive)
    rows(
        "CREATE TABLE bank.probe (token uuid, note text, amount numeric(12,2), updated_at timestamptz NOT NULL, PRIMARY KEY (token, note))"
    )
    try:
        rows("INSERT INTO bank.probe SELECT gen_random_uuid(), 'a,b' || g, g, now() FROM generate_series(1, 200) AS g")
        extract([table], "full", run, hive)
        take(hive, table, run)
        rows("DELETE FROM bank.probe WHERE note = 'a,b77'")
        (gone,) = sweep([table], run, hive)
        assert (gone.row_count, gone.key_ranges) == (1, None)
        assert hive.run(f"SELECT note FROM raw.probe_deleted WHERE batch = {gone.number}") == [("a,b77",)]
        reconcile([table], run, hive)
    finally:
        clear(hive)


def test_rewind_keeps_a_batch_and_the_next_increment_reads_the_rest_again(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 10)
    load(hive, run, "full")
    for first in (20, 30):
        fill(first, first + 5)
        load(hive, run)
    assert in_raw(hive) == [1, 2, 3]
    assert [batch.number for batch in rewind(hive, probe, 1, run)] == [3, 2]
    assert in_raw(hive) == [1]
    assert len(in_core(hive)) == 22
    # Its number is above core's mark: 2 and 3 are never used twice.
    (again,) = load(hive, run)
    assert (again.number, again.row_count) == (4, 12)
    assert len(storage().list(batches.root("probe", "full"))) == 2
    assert in_core(hive) == in_source()
    (found,) = watermarks(hive, [probe])
    assert (found.newest, found.mark) == (4, 4)


def test_rewind_across_a_full_batch_needs_force(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 10)
    extract([probe], "full", run, hive)
    extract([probe], "full", run, hive)
    with pytest.raises(RefusedError, match="batch 2 of probe is a full one"):
        rewind(hive, probe, 1, run)
    with pytest.raises(RefusedError, match="probe has no batch 9; published are 1, 2"):
        rewind(hive, probe, 9, run)
    rewind(hive, probe, 1, run, force=True)
    assert in_raw(hive) == [1]


def test_a_new_nullable_column_goes_down_the_line_with_a_warning(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 5)
    load(hive, run, "full")
    rows("ALTER TABLE bank.probe ADD COLUMN device text")
    fill(6, 7)
    rows("UPDATE bank.probe SET device = 'phone' WHERE probe_id = 6")
    with capture_logs() as logged:
        load(hive, run)
    warned = [(line["table"], line["column"]) for line in logged if (line["event"], line["log_level"]) == ("new column", "warning")]
    assert warned == [("probe", "device"), ("core.probe", "device")]
    for table in ("raw.probe", "core.probe"):
        assert dict(hive.run(f"SELECT probe_id, device FROM {table} WHERE probe_id > 4")) == {5: None, 6: "phone", 7: None}
    reconcile([probe], run, hive)


def test_any_other_drift_names_the_column_and_publishes_nothing(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 5)
    load(hive, run, "full")
    fill(6, 7)
    for change, undo, words in (
        ("ALTER COLUMN small TYPE bigint", "ALTER COLUMN small TYPE smallint", r"bank\.probe\.small is now bigint"),
        ("ALTER COLUMN amount TYPE numeric(12,3)", "ALTER COLUMN amount TYPE numeric(12,2)", r"bank\.probe\.amount is now numeric"),
        ("RENAME COLUMN born TO born_on", "RENAME COLUMN born_on TO born", r"bank\.probe\.born is gone"),
        ("ADD COLUMN needed integer NOT NULL DEFAULT 1", "DROP COLUMN needed", r"bank\.probe\.needed is new and NOT NULL"),
        ("DROP COLUMN note", "ADD COLUMN note text", r"bank\.probe\.note is gone"),
    ):
        rows(f"ALTER TABLE bank.probe {change}")
        with pytest.raises(RefusedError, match=words):
            extract([probe], "incremental", run, hive)
        assert in_raw(hive) == [1], change
        assert len(storage().list(batches.root("probe", "full"))) == 1, change
        rows(f"ALTER TABLE bank.probe {undo}")
    assert len(in_core(hive)) == 5
    assert load(hive, run)[0].row_count == 2


# Two runs ------------------------------------------------------------------------------------------------------


def test_a_second_run_refuses_and_names_the_first(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 5)
    with ops.run("other") as other, ops.writer("raw.probe", other), pytest.raises(BusyError, match=other.run_id):
        extract([probe], "full", run, hive)
    assert extract([probe], "full", run, hive)


def test_of_two_runs_with_one_number_only_one_publishes(probe: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loses its database session, so a second begins; both reach ADD PARTITION with the same number."""
    fill(1, 5)
    extract([probe], "full", run, hive)
    fill(6, 9)
    original = batches.publish

    def overtaken(session: Session, ready: list[Batch]) -> object:
        monkeypatch.undo()
        rows(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND application_name LIKE 'run %%'",
            role="postgres",
            dbname="warehouse",
        )
        with ops.run("second") as second, sql_server.session() as own:
            assert extract([probe], "incremental", second, own)[0].number == 2
        return original(session, ready)

    monkeypatch.setattr(batches, "publish", overtaken)
    with pytest.raises(WarehouseError):
        extract([probe], "incremental", run, hive)
    assert in_raw(hive) == [1, 2]
    take(hive, probe, run)
    reconcile([probe], run, hive)
    assert in_core(hive) == in_source()


def test_a_folder_that_vanished_is_noticed_before_and_after_publishing(
    probe: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(1, 5)
    extract([probe], "full", run, hive)
    fill(6, 9)
    original = batches.publish

    def vanished(session: Session, ready: list[Batch]) -> object:
        storage().delete(ready[0].folder, recursive=True)
        return original(session, ready)

    monkeypatch.setattr(batches, "publish", vanished)
    with pytest.raises(WarehouseError, match="Hive reads 0 rows"):
        extract([probe], "incremental", run, hive)
    monkeypatch.undo()
    assert in_raw(hive) == [1]
    assert extract([probe], "incremental", run, hive)[0].row_count == 4


def test_a_publish_at_the_moment_of_clearing_is_put_back(
    probe: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(1, 5)
    (first,) = extract([probe], "full", run, hive)
    state = batches.published(hive, [probe])["probe"]
    batches.unpublish(hive, "raw.probe", 1)
    stale = dataclasses.replace(state, rows=frozenset())
    # Published between the listing and the clearing.
    hive.run(f"ALTER TABLE raw.probe ADD PARTITION (batch=1) LOCATION '{first.location}'")
    with pytest.raises(BusyError, match="another run published batch 1"):
        batches.remove_unpublished(hive, stale, "test")
    assert hive.run("SELECT count(*) FROM raw.probe WHERE batch = 1") == [(5,)]


# The command ---------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *arguments], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=180)


def test_commands_explain_themselves_and_fail_with_documented_codes() -> None:
    for script in ("bash/extract.sh", "bash/reconcile.sh"):
        found = command(script, "-h")
        assert found.returncode == 0
        assert "Usage:" in found.stdout
        assert "Exit codes:" in found.stdout
    assert command("bash/extract.sh").returncode == 2
    found = command("bash/extract.sh", "full", "nonsense")
    assert found.returncode == 3
    assert "nonsense is not declared" in found.stderr
    assert command("bash/extract.sh", "watermark", "show").returncode == 0


def test_reader_sees_a_batch_whole_or_not_at_all(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 1000)
    extract([probe], "full", run, hive)
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        with sql_server.session() as own:
            while not stop.is_set():
                seen.add(int(own.run("SELECT count(*) FROM raw.probe")[0][0]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        fill(2000, 2999)
        extract([probe], "incremental", run, hive)
    finally:
        stop.set()
        reader.join()
    assert seen <= {1000, 2000}


def test_a_partition_that_the_metastore_added_at_its_own_second_attempt_is_this_run_s(
    probe: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(1, 20)
    original = Session.run_file

    def twice(session: Session, path: str, **parameters: object) -> object:
        if "add_partition" in str(path):
            original(session, path, **parameters)
        return original(session, path, **parameters)

    monkeypatch.setattr(Session, "run_file", twice)
    (batch,) = extract([probe], "full", run, hive)
    monkeypatch.undo()
    take(hive, probe, run)
    assert (batch.number, in_core(hive)) == (1, in_source())


# The identity of a batch's source.


@pytest.fixture
def crm() -> Iterator[Table]:
    """A table of the same name and columns in another schema, with other rows."""
    rows("DROP SCHEMA IF EXISTS crm CASCADE", role="postgres")
    rows("CREATE SCHEMA crm AUTHORIZATION bank", role="postgres")
    rows(CREATE.replace("bank.probe", "crm.probe"))
    rows("GRANT USAGE ON SCHEMA crm TO extractor; GRANT SELECT ON crm.probe TO extractor")
    rows("INSERT INTO crm.probe (probe_id, amount, email, updated_at) VALUES (7, 7, 'crm', now()), (8, 8, 'crm', now())")
    yield dataclasses.replace(PROBE, schema="crm")
    rows("DROP SCHEMA crm CASCADE", role="postgres")


def manifest_of(batch: Batch) -> dict[str, object]:
    with storage().read(f"{batch.folder}/{batches.MANIFEST}") as reader:
        return json.loads(reader.read())


def test_a_batch_of_another_table_is_never_merged(probe: Table, crm: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 20)
    (full,) = load(hive, run, "full")
    assert manifest_of(full)["schema"] == "bank"
    fill(30, 31)
    # The declaration names another schema since: neither its rows come in, nor is what bank.probe published taken for its.
    for work in (
        lambda: extract([crm], "incremental", run, hive),
        lambda: sweep([crm], run, hive),
        lambda: reconcile([crm], run, hive),
    ):
        with pytest.raises(RefusedError, match=r"batch 1 of probe was read from bank\.probe, and crm\.probe is declared"):
            work()
    extract([probe], "incremental", run, hive)
    before = in_core(hive)
    with pytest.raises(RefusedError, match=r"was read from bank\.probe, and crm\.probe is declared"):
        take(hive, crm, run)
    assert in_core(hive) == before
    # The documented way: a full load replaces everything.
    extract([crm], "full", run, hive)
    take(hive, crm, run)
    assert in_core(hive) == {7: Decimal(7), 8: Decimal(8)}
    assert reconcile([crm], run, hive)[0].loaded_rows == 2


def test_a_batch_of_another_cluster_is_never_merged(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 20)
    load(hive, run, "full")
    fill(30, 31)
    (second,) = extract([probe], "incremental", run, hive)
    batches.write_manifest(dataclasses.replace(second, server=dataclasses.replace(second.server, system_identifier="7")))
    before = in_core(hive)
    with pytest.raises(RefusedError, match=r"batch 2 of probe was read from another Postgres cluster \(system 7\)"):
        take(hive, probe, run)
    assert in_core(hive) == before
    with pytest.raises(RefusedError, match="came from another server"):
        extract([probe], "incremental", run, hive)
    # As after a dump and a restore on another server.
    extract([probe], "full", run, hive)
    take(hive, probe, run)
    assert in_core(hive) == in_source()
    fill(40, 41)
    load(hive, run)
    assert in_core(hive) == in_source()


def test_an_older_manifest_has_no_schema_and_the_next_publish_adds_it(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 20)
    (full,) = extract([probe], "full", run, hive)
    old = {name: value for name, value in manifest_of(full).items() if name != "schema"}
    storage().write(f"{full.folder}/{batches.MANIFEST}", json.dumps(old).encode(), overwrite=True)
    assert batches.read(full.folder).schema is None
    take(hive, probe, run)
    fill(30, 31)
    (second,) = load(hive, run)
    assert manifest_of(second)["schema"] == "bank"
    rows("DELETE FROM bank.probe WHERE probe_id = 30")
    (gone,) = sweep([probe], run, hive, force=True)
    assert manifest_of(gone)["schema"] == "bank"
    take(hive, probe, run)
    assert in_core(hive) == in_source()


def test_rows_of_a_table_that_was_named_like_a_sweep_are_never_taken_for_deletions(probe: Table, hive: Session, run: ops.Run) -> None:
    fill(1, 20)
    load(hive, run, "full")
    rows(CREATE.replace("bank.probe", "bank.probe_deleted"))
    try:
        rows("INSERT INTO bank.probe_deleted SELECT * FROM bank.probe WHERE probe_id > 1")
        # Past the check of declarations, as an earlier version did.
        alike = dataclasses.replace(PROBE, name="probe_deleted")
        extract([alike], "full", run, hive)
        extract([alike], "full", run, hive)
        fill(30, 30)
        with pytest.raises(RefusedError, match=r"batch \d of raw\.probe_deleted is a full batch of the table probe_deleted"):
            load(hive, run)
        assert len(in_core(hive)) == 20
    finally:
        rows("DROP TABLE bank.probe_deleted")
        for name in ("raw.probe_deleted_deleted", "raw.probe_deleted"):
            hive.run(f"DROP TABLE IF EXISTS {name}")
            storage().delete(f"/warehouse/{name.replace('.', '/')}", recursive=True)


def test_a_sweep_that_one_table_refuses_sweeps_the_others(probe: Table, crm: Table, hive: Session, run: ops.Run) -> None:
    rows("ALTER TABLE crm.probe RENAME TO probe_two")
    second = dataclasses.replace(crm, name="probe_two")
    fill(1, 20)
    rows("INSERT INTO crm.probe_two (probe_id, amount, updated_at) SELECT g, g, now() FROM generate_series(100, 400) AS g")
    try:
        load(hive, run, "full")
        extract([second], "full", run, hive)
        take(hive, second, run)
        rows("DELETE FROM bank.probe WHERE probe_id > 10")
        rows("DELETE FROM crm.probe_two WHERE probe_id = 200")
        missing = dataclasses.replace(PROBE, name="probe_none")
        with pytest.raises(
            SeveralError, match=r"(?s)2 failed, .*probe_none has no batch to continue.*10 of 20 keys of bank\.probe are gone"
        ) as found:
            sweep([missing, probe, second], run, hive)
        assert found.value.exit_code == 3
        take(hive, second, run)
        assert hive.run("SELECT count(*) FROM core.probe_two WHERE probe_id = 200") == [(0,)]
        assert hive.run("SELECT count(*) FROM core.probe_two") == [(302,)]
        with pytest.raises(RefusedError, match="are gone, more than the share"):
            sweep([probe, second], run, hive)
        # Reconciliation as well: a table that is not loaded keeps no other from being compared.
        with pytest.raises(RefusedError, match=r"core\.probe_none"), capture_logs() as logs:
            reconcile([dataclasses.replace(missing, personal=()), second], run, hive)
        assert [log["table"] for log in logs if log["event"] == "equal"] == ["probe_two"]
    finally:
        for name in ("raw.probe_two", "raw.probe_two_deleted", "core.probe_two", "core.probe_two_personal"):
            hive.run(f"DROP TABLE IF EXISTS {name}")
        for kind in ("full", "deletes"):
            storage().delete(batches.root("probe_two", kind), recursive=True)
