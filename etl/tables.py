"""The declared source tables."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from etl.errors import RefusedError
from etl.settings import ROOT, settings

# Of the warehouse, in Hive.
DATABASES = ("raw", "core", "feature", "mart", "ops")
DECLARATIONS = ROOT / "etl" / "tables.yaml"
# The metastore has no case, and SQL takes nothing else without quotes.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CREATE_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+)\.(\w+)", re.MULTILINE)


def deletions_of(name: str) -> str:
    """Return the name of the table in `raw` that holds the keys which sweeps found gone from a declared table."""
    return f"{name}_deleted"


def personal_of(name: str) -> str:
    """Return the name of the table in `core` that holds the personal columns of a declared table."""
    return f"{name}_personal"


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
def own_names() -> dict[str, str]:
    """Return the names of tables that the warehouse makes of itself, each with the qualified name of that table.

    They are read from the statements and models that make them. A table in `feature` has the name of the declared table
    whose features it holds, so those names are free.
    """
    made = [(path.parent.parent.name, path.parent.name) for path in (ROOT / "hive").glob("*/*/create.hql")]
    made += [("mart", path.stem) for path in (ROOT / "hive" / "mart" / "models").rglob("*.sql")]
    for path in (ROOT / "sql" / "warehouse").glob("*.sql"):
        made += _CREATE_TABLE.findall(path.read_text(encoding="utf-8"))
    return {name: f"{database}.{name}" for database, name in sorted(made) if database != "feature"}


def check_names(tables: Sequence[Table]) -> None:
    """Refuse declarations of which one would be taken for another, or for a table that the warehouse makes.

    Raises
    ------
    RefusedError
        Naming the declaration.
    """
    by_name: dict[str, Table] = {}
    for table in tables:
        if other := by_name.get(str(table.name).lower()):
            raise RefusedError(
                f"{DECLARATIONS}: {other.source} and {table.source} are both declared and would share the tables of one name in the "
                "warehouse, where names have no case; only one of them can be loaded: rename the other one in the source, or remove it here"
            )
        by_name[str(table.name).lower()] = table
    for table in tables:
        if not _NAME.fullmatch(str(table.name)):
            raise RefusedError(
                f"{DECLARATIONS}: table {table.name}: a table's name has lower-case letters, digits and underscores, and begins with a "
                "letter; rename it in the source"
            )
        made = {deletions_of(other): f"raw.{deletions_of(other)}" for other in by_name}
        made |= {personal_of(other): f"core.{personal_of(other)}" for other in by_name}
        if own := (own_names() | made).get(table.name):
            raise RefusedError(
                f"{DECLARATIONS}: table {table.name}: the name is reserved, for the warehouse itself makes {own}; rename {table.source} in "
                "the source"
            )


@functools.cache
def declared_tables(path: Path = DECLARATIONS) -> dict[str, Table]:
    """Return the declared tables by name, parents before children.

    Raises
    ------
    RefusedError
        When a declaration cannot be read or its name is taken (`check_names`).
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]
        tables = [_declared(dict(entry)) for entry in entries]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path} cannot be read as declarations of tables ({' '.join(str(error).split())}); correct it") from error
    check_names(tables)
    return {table.name: table for table in tables}


def select_tables(names: list[str]) -> list[Table]:
    """Return the named tables in their declared order; all of them when no name is given.

    Raises
    ------
    RefusedError
        When a name is not declared, or a declaration is refused.
    """
    tables = declared_tables()
    if unknown := [name for name in names if name not in tables]:
        raise RefusedError(f"table {', '.join(unknown)} is not declared in etl/tables.yaml; declared are {', '.join(tables)}")
    return [table for name, table in tables.items() if not names or name in names]
