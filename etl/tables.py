"""The declared source tables."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from etl.errors import RefusedError
from etl.settings import ROOT, settings

DECLARATIONS = ROOT / "etl" / "tables.yaml"


@dataclass(frozen=True)
class Table:
    """A declared source table; `etl/tables.yaml` says what each field means."""

    name: str
    schema: str
    key: tuple[str, ...]
    cursor: str
    time: str | None = None
    split: str = "ctid"
    streamed: bool = False
    personal: tuple[str, ...] = ()
    decimals: dict[str, str] = field(default_factory=dict, hash=False)
    lag_seconds: float | None = None
    cursor_set_by: str = "server"

    @property
    def source(self) -> str:
        """Qualified name in Postgres."""
        return f"{self.schema}.{self.name}"

    @property
    def lag(self) -> float:
        """How far `next_from` stays behind the horizon, seconds."""
        return settings().lag_seconds if self.lag_seconds is None else self.lag_seconds


def _declared(entry: dict[str, Any]) -> Table:
    known = set(Table.__dataclass_fields__)
    if unknown := set(entry) - known:
        raise RefusedError(f"{DECLARATIONS}: table {entry.get('name')}: unknown field {', '.join(sorted(unknown))}")
    if missing := {"name", "schema", "key", "cursor"} - set(entry):
        raise RefusedError(f"{DECLARATIONS}: table {entry.get('name')}: missing field {', '.join(sorted(missing))}")
    key = entry["key"]
    return Table(
        **{
            **entry,
            "key": (key,) if isinstance(key, str) else tuple(key),
            "personal": tuple(entry.get("personal", ())),
        }
    )


@functools.cache
def declared_tables(path: Path = DECLARATIONS) -> dict[str, Table]:
    """Return the declared tables by name, parents before children."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]
    return {table.name: table for table in map(_declared, entries)}


def select_tables(names: list[str]) -> list[Table]:
    """Return the named tables in their declared order; all of them when no name is given.

    Raises
    ------
    RefusedError
        When a name is not declared.
    """
    tables = declared_tables()
    if unknown := [name for name in names if name not in tables]:
        raise RefusedError(f"table {', '.join(unknown)} is not declared in etl/tables.yaml; declared are {', '.join(tables)}")
    return [table for name, table in tables.items() if not names or name in names]
