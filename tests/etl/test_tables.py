"""Declarations of tables: which names are free, which are the warehouse's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from etl.errors import RefusedError
from etl.settings import ROOT
from etl.tables import DECLARATIONS, declared_tables, own_names

DECLARED: list[dict[str, object]] = yaml.safe_load(DECLARATIONS.read_text())["tables"]


def declare(tmp_path: Path, *sources: str, **more: object) -> Path:
    """Write declarations of this project's tables and of some more, by their qualified names."""
    names = [source.split(".") for source in sources]
    added = [{"schema": schema, "name": name, "key": "id", "cursor": "updated_at", **more} for schema, name in names]
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump({"tables": [*DECLARED, *added]}))
    return path


def test_tables_of_a_bank_are_declared_beside_those_of_this_project(tmp_path: Path) -> None:
    found = declared_tables(declare(tmp_path, "bank.orders", "crm.order_lines", "bank.deleted", "bank.orders_archive"))
    assert list(found)[4:] == ["orders", "order_lines", "deleted", "orders_archive"]


@pytest.mark.parametrize("name", ["events", "runs", "erasures", "notifications", "predictions", "alerts", "fraud_daily", "dates"])
def test_a_name_that_the_warehouse_makes_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=rf"table {name}: the name is reserved, .* makes (raw|ops|mart)\.{name}"):
        declared_tables(declare(tmp_path, f"bank.{name}"))


def test_every_table_that_a_statement_or_a_model_makes_is_reserved() -> None:
    statements = {path.parent.name for path in (ROOT / "hive").rglob("create.hql")} - {"transactions"}
    models = {path.stem for path in (ROOT / "hive" / "mart" / "models").rglob("*.sql")}
    assert own_names().keys() >= statements | models | {"events", "runs", "rejects", "erasures"}
    assert not own_names().keys() & {str(entry["name"]) for entry in DECLARED}


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (("bank.orders", "bank.orders_deleted"), r"table orders_deleted: the name is reserved, .* makes raw\.orders_deleted"),
        (("bank.orders_deleted", "bank.orders"), r"table orders_deleted: the name is reserved"),
        (("bank.orders", "bank.orders_personal"), r"table orders_personal: the name is reserved, .* makes core\.orders_personal"),
        (("bank.customers_personal",), r"table customers_personal: the name is reserved"),
        (("bank.terminals_deleted",), r"table terminals_deleted: the name is reserved"),
        (("bank.accounts", "crm.accounts"), r"bank\.accounts and crm\.accounts are both declared"),
        (("bank.accounts", "bank.accounts"), r"bank\.accounts and bank\.accounts are both declared"),
        (("bank.accounts", "bank.Accounts"), r"bank\.accounts and bank\.Accounts are both declared"),
        (("bank.Events",), r"table Events: a table's name has lower-case letters"),
        (("bank._stream",), r"table _stream: a table's name has lower-case letters"),
        (("bank.2026_orders",), r"table 2026_orders: a table's name"),
        (("bank.größe",), r"table größe: a table's name"),
        (("bank.a b",), r"table a b: a table's name"),
    ],
)
def test_declarations_that_would_share_tables_are_refused(sources: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=said):
        declared_tables(declare(tmp_path, *sources))


@pytest.mark.parametrize("text", ["", "tables: [", "tables: {a: b}", "tables: 3", "other: []", "tables: [a, b]"])
def test_a_file_that_holds_no_declarations_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tables.yaml").write_text(text)
    with pytest.raises(RefusedError, match="cannot be read as declarations"):
        declared_tables(tmp_path / "tables.yaml")


@pytest.mark.parametrize(
    "verb",
    [
        ("etl.extract", "full"),
        ("etl.extract", "deletes"),
        ("etl.extract", "watermark", "show"),
        ("etl.load", "incremental"),
        ("etl.transform", "full"),
        ("etl.reconcile",),
        ("etl.status",),
        ("etl.maintain",),
        ("etl.load_csv", "full", "orders.csv"),
        ("etl.erase", "7"),
        ("ml.build_features", "full"),
        ("ml.score",),
        ("api.stream", "run"),
    ],
)
def test_a_verb_refuses_before_it_reads_anything(verb: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "etl").mkdir()
    for path in ROOT.iterdir():
        if path.name != "etl" and not path.name.startswith(".") and path.name != "var":
            (tmp_path / path.name).symlink_to(path)
    for path in (ROOT / "etl").iterdir():
        (tmp_path / "etl" / path.name).symlink_to(path)
    (tmp_path / "etl" / "tables.yaml").unlink()
    (tmp_path / "etl" / "tables.py").unlink()
    (tmp_path / "etl" / "settings.py").unlink()
    for name in ("tables.py", "settings.py"):
        (tmp_path / "etl" / name).write_text((ROOT / "etl" / name).read_text())
    declare(tmp_path / "etl", "bank.orders", "bank.orders_deleted")
    # No server listens there: whoever asked one would end with 6.
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "WAREHOUSE_DATA_DIR": str(tmp_path / "data"), "WAREHOUSE_PORT_OFFSET": "21000"}
    ran = subprocess.run(
        [sys.executable, "-m", *verb], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 3, ran.stderr
    assert "table orders_deleted: the name is reserved" in ran.stderr
