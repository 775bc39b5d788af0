"""Manifests, names and the statements that publish, without servers."""

from __future__ import annotations

import datetime as dt

import pytest

from etl import batches
from etl.batches import Batch, hive_name, newest_folder, root
from etl.columns import column
from etl.source import Server
from etl.sql_server import render
from etl.tables import declared_tables

NOW = dt.datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=dt.UTC)


def batch(**more: object) -> Batch:
    fields: dict[str, object] = {
        "table": "transactions",
        "number": 7,
        "kind": "incremental",
        "run_id": "run",
        "folder": "/warehouse/raw/transactions/7-run",
        "server": Server("1", 1, "bank"),
        "clock": NOW,
        "snapshot": "10:20:11,12",
        "snapshot_xmin": 10,
        "snapshot_xmax": 20,
        "row_count": 2,
        "rejected_count": 1,
        "content_hash": "123456789012345678901234567890",
        "columns": (column("bank.transactions", "transaction_id", source_type="bigint", base_type="int8", is_nullable=False),),
        "key": ("transaction_id",),
        "range_from": None,
        "next_from": NOW,
        "key_ranges": ((1, 3), (2**62, 2**62)),
        "files": ({"name": "part-00-000.parquet", "rows": 2, "bytes": 10},),
        "prepared": ("transfer",),
        "version": "v",
    }
    return Batch(**{**fields, **more})  # type: ignore[arg-type]


def test_a_manifest_reads_back_as_it_was_written() -> None:
    for written in (batch(), batch(key_ranges=None, next_from=None, repaired={"column": "x", "from": "a", "to": "b"})):
        assert Batch.from_json(written.to_json(), written.folder) == written


def test_deletions_have_a_table_of_their_own() -> None:
    assert hive_name("transactions", "deletes") == "raw.transactions_deleted"
    assert [root("transactions", kind).split("/")[-1] for kind in ("full", "repair", "deletes")] == [
        "transactions",
        "transactions",
        "transactions_deleted",
    ]


def test_what_the_next_increment_continues_is_in_the_manifest() -> None:
    previous = batch().previous()
    assert (previous.next_from, previous.snapshot_xmin, previous.clock) == (NOW, 10, NOW)


def test_one_statement_reads_several_batches() -> None:
    one = {"name": "raw.a", "other": "raw.a_deleted", "batch": 1, "aggregates": "count(*) AS row_count", "outline": "''"}
    text = render("hive/source/outline.hql.j2", batches=[{**one, "position": 0}, {**one, "position": 1}])
    words = text.split()
    assert words.count("UNION") == 3
    assert words.count("SELECT") == 6


def test_the_newest_folder_is_a_batch_s_not_one_that_was_moved_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"transactions": ["_trash-99-run", "3-run"], "transactions_deleted": ["12-run"]}
    monkeypatch.setattr(batches, "names_in", lambda path: names[path.rsplit("/", 1)[-1]])
    assert newest_folder(declared_tables()["transactions"]) == 12
    names = {name: ["_trash-99-run"] for name in names}
    assert newest_folder(declared_tables()["transactions"]) == 0
