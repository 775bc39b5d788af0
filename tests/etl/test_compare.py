"""Differing rows are found whatever the sizes of the parts, with few statements."""

from __future__ import annotations

import duckdb
import pytest

from etl import compare
from etl.columns import Column, column
from etl.compare import View, differing_rows


def made(name: str) -> Column:
    return column("t", name, source_type="bigint", base_type="int8", is_nullable=False)


KEY, COLUMNS = [made("id")], [made("id"), made("amount")]
PART = '("id" // 10)'


@pytest.fixture
def statements() -> list[str]:
    return []


def sides(statements: list[str], core: str) -> tuple[View, View]:
    session = duckdb.connect()
    session.execute("CREATE TABLE source AS SELECT id, id * 7 AS amount FROM range(1000) AS t(id)")
    session.execute(f"CREATE TABLE core AS {core}")

    def run(statement: str) -> list[tuple[object, ...]]:
        statements.append(statement)
        return session.execute(statement).fetchall()

    return View("duckdb", run, "source", "true"), View("duckdb", run, "core", "true")


def differences(source: View, core: View) -> dict[str, tuple[list[str], list[str]]]:
    groups = source.groups(PART, COLUMNS), core.groups(PART, COLUMNS)
    found: dict[str, tuple[list[str], list[str]]] = {}
    # A large part comes in several pieces.
    for name, *both in differing_rows(source, core, (PART, PART), groups, KEY, COLUMNS):
        for texts, rows in zip(found.setdefault(name, ([], [])), both, strict=True):
            texts += [text for _, text in rows.values()]
    return {name: (sorted(here), sorted(there)) for name, (here, there) in found.items()}


@pytest.mark.parametrize("at_once", [1, 7, 25, 200_000])
def test_rows_that_differ_are_found_by_part(at_once: int, statements: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROWS_AT_ONCE", at_once)
    gone, changed, added = "id IN (5, 6, 990)", "id IN (6, 500)", "SELECT 2000, 1"
    source, core = sides(
        statements, f"SELECT id, id * 7 + ({changed})::int AS amount FROM source WHERE NOT {gone} OR {changed} UNION ALL {added}"
    )
    assert differences(source, core) == {
        "0": (["5", "6"], ["6"]),
        "50": (["500"], ["500"]),
        "99": (["990"], []),
        "200": ([], ["2000"]),
    }


def test_many_small_parts_are_fetched_by_one_statement_a_side(statements: list[str]) -> None:
    source, core = sides(statements, "SELECT id, id * 7 AS amount FROM source WHERE id % 10 <> 3")
    assert sum(len(here) for here, _ in differences(source, core).values()) == 100
    assert len(statements) == 4
