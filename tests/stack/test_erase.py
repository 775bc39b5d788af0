"""Erase a person: nothing is left in any byte of HDFS or row of Postgres, all others are as they were, and loads go on."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import zlib
from collections.abc import Iterator

import hdfs
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl import batches, core, events, ops, sql_server
from etl.erase import erase
from etl.errors import BusyError, RefusedError, WarehouseError
from etl.extract import extract
from etl.maintain import maintain
from etl.reconcile import reconcile
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.storage import storage
from etl.sweep import sweep
from etl.tables import Table
from etl.transform import take
from etl.watermark import watermarks
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.stack.test_kills import seldom

# The customers' columns in a table of this file's own.
PEOPLE = Table("people", "bank", ("customer_id",), "updated_at", personal=("customer_name", "email"), lag_seconds=0)
CREATE = """
CREATE TABLE bank.people (
    customer_id bigint PRIMARY KEY, customer_name text NOT NULL, email text, country text NOT NULL, updated_at timestamptz NOT NULL
);
CREATE TRIGGER set_updated_at BEFORE INSERT OR UPDATE ON bank.people FOR EACH ROW EXECUTE FUNCTION bank.set_updated_at();
ALTER TABLE bank.people ENABLE ALWAYS TRIGGER set_updated_at;
CREATE INDEX ON bank.people (updated_at);
"""
DAY = "received_on=2001-01-01"


def maiden_name(person: int) -> str:
    """A name longer than Iceberg's bounds, the first of all in the alphabet: a bound for certain."""
    return f"Aaltje-{person} Ångström-Featherstonehaugh"


def name(person: int) -> str:
    return f'Żółć-{person} "Bo" Featherstone'


def mail(person: int) -> str:
    return f"aaltje.{person}@mail.example"


def names(person: int) -> list[str]:
    return [maiden_name(person), name(person), mail(person)]


def clear(hive: Session) -> None:
    rows("DROP TABLE IF EXISTS bank.people")
    for table in ("raw.people", "raw.people_deleted", "core.people", "core.people_personal"):
        hive.run(f"DROP TABLE IF EXISTS {table}")
    # Hive leaves the files of an Iceberg table that is dropped.
    for folder in ("raw/people", "raw/people_deleted", "core/people", "core/people_personal", f"raw/events/{DAY}"):
        storage().delete(f"{settings().warehouse_path}/{folder}", recursive=True)
    for table in ("ops.rejects", "ops.erasures"):
        rows(f"DELETE FROM {table} WHERE table_name = 'people'", role="etl", dbname="warehouse")
    rows("DELETE FROM ops.rejects WHERE origin = 'topic erase'", role="etl", dbname="warehouse")
    rows("DELETE FROM ops.notifications WHERE idempotency_key LIKE 'alert-erase%'", role="etl", dbname="warehouse")


def load(hive: Session, run: ops.Run, kind: str = "incremental") -> None:
    extract([PEOPLE], kind, run, hive)
    take(hive, PEOPLE, run)


PERSONS = tuple(range(70, 100))


@pytest.fixture(scope="module")
def people(stack: None) -> Iterator[Table]:
    """Thirty persons whom tests erase, each with two names in three batches, among three hundred others."""
    with sql_server.session() as hive, ops.run("test") as run:
        clear(hive)
        rows(CREATE)
        rows(
            "INSERT INTO bank.people SELECT g, 'Mary ' || g || ' Jones', 'mary.' || g || '@mail.example', 'NL', now() "
            "FROM generate_series(1, 300) AS g"
        )
        for person in PERSONS:
            rows("UPDATE bank.people SET customer_name = %s, email = %s WHERE customer_id = %s", maiden_name(person), mail(person), person)
        load(hive, run, "full")
        rows("UPDATE bank.people SET country = 'DE' WHERE customer_id <= 100")
        load(hive, run)
        for person in PERSONS:
            rows("UPDATE bank.people SET customer_name = %s WHERE customer_id = %s", name(person), person)
        load(hive, run)
        yield PEOPLE
        clear(hive)


def blank(person: int) -> None:
    rows("UPDATE bank.people SET customer_name = 'erased', email = NULL WHERE customer_id = %s", person)


def spellings(text: str) -> set[str]:
    return {text.lower(), json.dumps(text, ensure_ascii=False)[1:-1].lower(), json.dumps(text)[1:-1].lower()}


def is_in(content: bytes, text: str) -> bool:
    """Whether a file holds a text, or as much of it as a bound does; by other means than the verb's own."""
    if content[:4] == content[-4:] == b"PAR1":
        cells = [cell for column in pq.read_table(pa.BufferReader(content)).columns for cell in column.to_pylist()]
        told = "\n".join(cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in cells).lower()
        return any(form in told for form in spellings(text)) or text.encode() in content
    if content[:4] == b"Obj\x01":
        found = [content]
        for block in content.split(content[-16:])[1:]:
            # Two numbers of one to five bytes stand before a compressed block.
            for start in range(2, 11):
                with contextlib.suppress(zlib.error):
                    found.append(zlib.decompress(block[start:], -15))
        return any(text[:15].encode() in one for one in found)
    told = content.decode(errors="replace").lower()
    return any(form in told for form in spellings(text))


def files(root: str = "") -> dict[str, bytes]:
    """Every file of HDFS."""
    found = {}
    for folder, _, members in storage().walk(root or settings().warehouse_path):
        for member in members:
            with storage().read(f"{folder}/{member}") as reader:
                found[f"{folder}/{member}"] = reader.read()
    return found


def in_hdfs(person: int) -> list[str]:
    everything = {**files(), **(files("/user") if storage().status("/user", strict=False) else {})}
    return sorted(path for path, content in everything.items() if any(is_in(content, text) for text in names(person)))


def in_postgres(person: int) -> list[str]:
    tables = rows(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
        role="etl",
        dbname="warehouse",
    )
    found = []
    for (table,) in tables:
        cells = [cell for row in rows(f"SELECT * FROM {table}", role="etl", dbname="warehouse") for cell in row]
        told = "\n".join(map(str, cells)).lower()
        if any(form in told for text in names(person) for form in spellings(text)):
            found.append(str(table))
    return found


def others(hive: Session, person: int) -> list[object]:
    """What everybody else's rows are, in raw, in core, and in the records."""
    return [
        hive.run(f"SELECT * FROM {table} WHERE customer_id <> {person} ORDER BY ALL")
        for table in ("raw.people", "core.people", "core.people_personal")
    ]


def expect_loads(hive: Session, run: ops.Run) -> None:
    """Say that sweeps, increments and full loads go on, and source and core are equal after them."""
    sweep([PEOPLE], run, hive)
    rows("UPDATE bank.people SET country = 'BE' WHERE customer_id = 300")
    load(hive, run)
    reconcile([PEOPLE], run, hive)
    load(hive, run, "full")
    reconcile([PEOPLE], run, hive)
    (state,) = watermarks(hive, [PEOPLE])
    assert state.mark == state.newest


def erasures(person: int) -> dict[object, int]:
    found = rows(
        "SELECT place, sum(item_count) FROM ops.erasures WHERE table_name = 'people' AND key = %s GROUP BY 1",
        str(person),
        role="etl",
        dbname="warehouse",
    )
    return {place: int(str(count)) for place, count in found}


def test_a_person_is_in_no_byte_any_more_and_everybody_else_is_as_before(people: Table, hive: Session, run: ops.Run) -> None:
    # The first of all in the alphabet: a bound of core's files.
    person = 70
    line = f"{person},{maiden_name(person)},{mail(person)},Netherlands"
    message = json.dumps({"transaction_id": 1, "note": f"called {name(person)}, {mail(person).upper()}"})
    own = [
        ops.Reject("people", "people.csv", "country is not two capital letters", 5, str(person), "country", line),
        ops.Reject("people", "people.csv", "country is not two capital letters", 5, str(person), "country", line + "!"),
        ops.Reject("people", "people.csv", "fields are missing", 6, None, None, f"{person},A. Nother Name"),
        ops.Reject("transactions", "topic erase", "extra field", 7, None, "note", message),
        ops.Reject("transactions", "topic erase", "extra field", 6, None, None, f"plain: {name(person).upper()}"),
        # Another spelling: without the values it is the record before.
        ops.Reject("transactions", "topic erase", "extra field", 7, None, "note", message.replace(mail(person).upper(), mail(person))),
    ]
    foreign = [
        ops.Reject("people", "people.csv", "country is not two capital letters", 8, "7", "country", f"7,Mary 7 Jones,{mail(1770)},NL,70x"),
        ops.Reject("transactions", "topic erase", "extra field", 9, None, "note", "from a" + mail(person)),
    ]
    run.reject([*own, *foreign])
    rows(
        "INSERT INTO ops.notifications (idempotency_key, channel, state, payload) VALUES ('alert-erase', 'log', 'dead', %s)",
        message,
        role="etl",
        dbname="warehouse",
    )
    written = io.BytesIO()
    keys = pa.array([b"70", None], pa.binary())
    pq.write_table(pa.table({"message_key": keys, "message": pa.array([message.encode(), b"\xff other"], pa.binary())}), written)
    storage().write(f"{events.root()}/{DAY}/events-1.parquet", written.getvalue(), overwrite=True)
    as_superuser = hdfs.InsecureClient(settings().webhdfs_url, user=psutil.Process().username())
    as_superuser.makedirs(f"/user/{settings().hdfs_user}/.Trash/Current", permission="777")
    as_superuser.set_owner(f"/user/{settings().hdfs_user}/.Trash", owner=settings().hdfs_user)
    storage().write(f"/user/{settings().hdfs_user}/.Trash/Current/people.csv", line.encode(), overwrite=True)

    # Where the search at the end is to find nothing, it finds something now: it can see.
    # As bash/marts.sh copies records for readers.
    hive.run(f"CREATE OR REPLACE TABLE ops.rejects USING iceberg AS SELECT 'no such name: {name(person)}' AS reason")
    found = in_hdfs(person)
    assert {path.split("/")[2] + path.rsplit(".", 1)[-1] for path in found if "people" in path and "/user/" not in path} >= {
        "rawparquet",
        "coreparquet",
        "coreavro",
    }
    assert any(path.endswith("events-1.parquet") for path in found)
    assert in_postgres(person) == ["ops.notifications", "ops.rejects"]
    before = others(hive, person)
    rejected = rows("SELECT count(*) FROM ops.rejects", role="etl", dbname="warehouse")
    numbers = batches.published(hive, [PEOPLE])["people"].rows

    with pytest.raises(RefusedError, match=r"bank\.people still holds customer_name, email of customer_id 70"):
        erase(people, person, run, hive)
    assert in_hdfs(person) == found

    blank(person)
    copy = f"{settings().warehouse_path}/mart/_copy.csv"
    storage().write(copy, f"x,{mail(person)}".encode(), overwrite=True)
    with pytest.raises(WarehouseError, match=r"1 places still hold personal data of customer_id 70: /warehouse/mart/_copy\.csv"):
        erase(people, person, run, hive)
    storage().delete(copy)
    assert "verified" not in erasures(person)
    erase(people, person, run, hive)
    assert in_hdfs(person) == []
    assert others(hive, person) == before
    assert rows("SELECT count(*) + 1 FROM ops.rejects", role="etl", dbname="warehouse") == rejected
    kept = rows("DELETE FROM ops.rejects WHERE line > 7 AND run_id = %s RETURNING payload", run.run_id, role="etl", dbname="warehouse")
    assert sorted(kept) == sorted((one.payload,) for one in foreign)
    assert in_postgres(person) == []
    ((masked,),) = rows("SELECT payload FROM ops.notifications WHERE idempotency_key = 'alert-erase'", role="etl", dbname="warehouse")
    assert json.loads(str(masked)) == {"transaction_id": 1, "note": "called erased, erased"}
    with storage().read(f"{events.root()}/{DAY}/events-1.parquet") as reader:
        assert pq.read_table(pa.BufferReader(reader.read()))["message"].to_pylist() == [str(masked).encode(), b"\xff other"]
    # The rows stay, in each of the batches, with what is not personal.
    assert hive.run(f"SELECT DISTINCT customer_name, email, country FROM raw.people WHERE customer_id = {person} ORDER BY country") == [
        ("erased", None, "DE"),
        ("erased", None, "NL"),
    ]
    assert batches.published(hive, [PEOPLE])["people"].rows == numbers
    assert hive.run("SELECT count(*) FROM core.people_personal.snapshots") == [(1,)]
    assert set(core.marks(hive, ["people", "people_personal"])) == {"people", "people_personal"}
    for batch in batches.all_batches(hive, batches.published(hive, [PEOPLE])["people"]):
        assert batch.bytes == sum(storage().status(f"{batch.folder}/{file['name']}")["length"] for file in batch.files)
        assert len([one for one in batches.names_in(batches.root("people", "full")) if one.startswith(f"{batch.number}-")]) == 1
    record = erasures(person)
    assert record.pop("verified") > 20
    assert record == {
        "ops.rejects": 6,
        "ops.notifications": 1,
        "raw.events": 1,
        "raw.people": 3,
        "core.people_personal": 3,
        "trash": 1,
    }

    assert erase(people, person, run, hive) == {}
    assert erasures(person) == {**record, "verified": erasures(person)["verified"]}
    expect_loads(hive, run)
    assert in_hdfs(person) == []


@pytest.mark.slow
def test_a_namesake_keeps_the_name_and_a_deleted_row_stays_away(people: Table, hive: Session, run: ops.Run) -> None:
    person, namesake = 78, 79
    rows("UPDATE bank.people SET customer_name = %s WHERE customer_id = %s", name(person), namesake)
    run.reject([ops.Reject("people", "p.csv", "country is wrong", 1, str(namesake), "country", f"{namesake},{name(person)},,N")])
    load(hive, run)
    before = others(hive, person)
    rows("DELETE FROM bank.people WHERE customer_id = %s", person)
    erase(people, person, run, hive)
    assert others(hive, person) == before
    assert hive.run(f"SELECT customer_name FROM core.people_personal WHERE customer_id = {namesake}") == [(name(person),)]
    kept = rows("SELECT payload FROM ops.rejects WHERE key = %s", str(namesake), role="etl", dbname="warehouse")
    assert kept == [(f"{namesake},{name(person)},,N",)]
    assert not any(is_in(content, text) for content in files().values() for text in (maiden_name(person), mail(person)))
    take(hive, PEOPLE, run, is_rebuild=True)
    reconcile([PEOPLE], run, hive)
    maintain(hive, "core", "people_personal", run, keep_days=0)
    expect_loads(hive, run)
    assert hive.run(f"SELECT count(*) FROM core.people WHERE customer_id = {person}") == [(0,)]


def test_a_partition_that_moves_while_folders_are_cleared_keeps_its_folder(
    people: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the statement of a run that was killed comes late."""
    state = batches.published(hive, [PEOPLE])["people"]
    old = batches.all_batches(hive, state)[-1]
    new = dataclasses.replace(old, folder=f"{batches.root('people', 'full')}/{old.number}-late")
    for file in old.files:
        with storage().read(f"{old.folder}/{file['name']}") as reader:
            storage().write(f"{new.folder}/{file['name']}", reader.read())
    batches.write_manifest(new)
    state = batches.published(hive, [PEOPLE])["people"]
    make = storage().makedirs

    def late(path: str) -> None:
        batches.move(hive, old, new)
        make(path)

    monkeypatch.setattr(storage(), "makedirs", late)
    with pytest.raises(BusyError, match=f"published batch {old.number} of raw.people at this moment"):
        batches.remove_unpublished(hive, state, run.run_id)
    monkeypatch.undo()
    state = batches.published(hive, [PEOPLE])["people"]
    assert batches.remove_unpublished(hive, state, run.run_id) == [old.folder.rsplit("/", 1)[-1]]
    assert batches.all_batches(hive, batches.published(hive, [PEOPLE])["people"])[-1] == new
    assert hive.run(f"SELECT count(*) FROM raw.people WHERE batch = {old.number}") == [(old.row_count,)]


def test_a_number_that_nobody_has_is_refused_by_the_verb() -> None:
    told = subprocess.run([ROOT / "bash" / "erase_customer.sh", "9000000000000001"], capture_output=True, text=True, timeout=120)
    assert told.returncode == 3, told.stderr
    assert "nothing is known of customer_id 9000000000000001" in told.stderr


KILLS = {
    "after the rejects": Step("etl.erase:erase_records", "after"),
    "while an event's file is replaced": Step("etl.storage:storage()._rename", "before"),
    "before core": Step("etl.erase:erase_core", "before"),
    "while core erases": Step("etl.sql_server:Session.run", 0.2, "UPDATE core"),
    "while core's files are written anew": Step("etl.sql_server:Session.run", 0.3, "rewrite_data_files"),
    "after core's files": Step("etl.sql_server:Session.run", "after", "rewrite_data_files"),
    "after the manifests": Step("etl.sql_server:Session.run", "after", "rewrite_manifests"),
    "before the tag": Step("etl.maintain:tag", "before"),
    "while snapshots expire": Step("etl.sql_server:Session.run", 0.2, "expire_snapshots"),
    "after snapshots": Step("etl.sql_server:Session.run", "after", "expire_snapshots"),
    "before a batch is written": Step("etl.streams:write", "before"),
    "before its manifest": Step("etl.batches:write_manifest", "before"),
    "before the partition moves": Step("etl.sql_server:Session.run", "before", "SET LOCATION"),
    "while the partition moves": Step("etl.sql_server:Session.run", 0.01, "SET LOCATION"),
    "after the partition has moved": Step("etl.sql_server:Session.run", "after", "SET LOCATION"),
    "before the search": Step("etl.erase:verify", "before"),
    "while old folders are removed": Step("etl.storage:storage().delete", "before", "_trash-"),
    "before the record": Step("etl.erase:_record", "before", "verified"),
}


@pytest.mark.parametrize("step", seldom(KILLS, ("after the partition has moved",)))
def test_an_erasure_killed_at_any_step_and_run_again(people: Table, hive: Session, run: ops.Run, step: str) -> None:
    """Each erases a person of its own; the loads after some of them prove the state that all of them left."""
    person = next(one for one in PERSONS[::-1] if one > 79 and not erasures(one))
    if step == "while an event's file is replaced":
        written = io.BytesIO()
        pq.write_table(pa.table({"message_key": pa.array([None], pa.binary()), "message": [mail(person).encode()]}), written)
        storage().write(f"{events.root()}/{DAY}/events-2.parquet", written.getvalue(), overwrite=True)
    before = others(hive, person)
    blank(person)
    killed_at(
        KILLS[step],
        f"""
        from etl import ops, sql_server
        from etl.erase import erase
        from tests.stack.test_erase import PEOPLE
        with ops.run("test") as run, sql_server.session() as hive:
            erase(PEOPLE, {person}, run, hive)
        """,
    )
    assert others(hive, person) == before
    erase(people, person, run, hive)
    assert in_hdfs(person) == []
    assert others(hive, person) == before
    assert "verified" in erasures(person)
    marks = core.marks(hive, ["people", "people_personal"])
    assert marks["people"].batch == marks["people_personal"].batch
    state = batches.published(hive, [PEOPLE])["people"]
    assert len(state.folders["full"]) == len(state.rows)
    load(hive, run)
    reconcile([PEOPLE], run, hive)
