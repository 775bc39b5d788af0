"""Compare rows of the source with rows of the warehouse by parts, and fetch only the parts that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.columns import Column, Dialect, content_hash, hash_expression, key_expression, quoted
from etl.sql_server import literal

# How many rows of differing parts are held in memory at once.
ROWS_AT_ONCE = 200_000
# A part that is larger is parted again by the hash of its keys.
SUBPARTS = 256
PARTS = 1024
# Between the parts of a composite key, as chr writes it: no bank's key holds a unit separator.
KEY_SEPARATOR = "chr(31)"


@dataclass(frozen=True)
class Group:
    """Rows of one part and the hash of their content."""

    rows: int
    content_hash: str


@dataclass(frozen=True)
class View:
    """The rows of one side.

    Attributes
    ----------
    run
        Executes a statement and returns its rows.
    relation, condition
        FROM and WHERE.
    alias
        Of the table that has the key, where the relation is a join; and by column where they come from the other one.
    """

    dialect: Dialect
    run: Callable[[str], list[tuple[Any, ...]]]
    relation: str
    condition: str
    alias: str = ""
    aliases: Mapping[str, str] | None = None

    def _alias(self, columns: Sequence[Column]) -> dict[str, str]:
        return {column.name: (self.aliases or {}).get(column.name, self.alias) for column in columns}

    def _text(self, expression: str) -> str:
        return f"CAST({expression} AS {'STRING' if self.dialect == 'spark' else 'text'})"

    def identity(self, key: Sequence[Column]) -> str:
        """Return a row's identity: the hash of its key, the same number on every side."""
        return hash_expression(self.dialect, key, self._alias(key))

    def groups(self, part: str, columns: Sequence[Column], more: str = "") -> dict[str, Group]:
        """Return rows and content hash by part."""
        # The inner SELECT is for Spark, where a float's hash may not stand inside an aggregate.
        statement = (
            f"SELECT part, count(*), {content_hash(self.dialect, 'row_hash')} FROM (SELECT {self._text(part)} AS part, "
            f"{hash_expression(self.dialect, columns, self._alias(columns))} AS row_hash "
            f"FROM {self.relation} WHERE {self.condition}{more}) AS hashed GROUP BY part"
        )
        return {str(row[0]): Group(int(row[1]), str(row[2])) for row in self.run(statement)}

    def rows(self, part: str, names: Sequence[str], key: Sequence[Column], columns: Sequence[Column], more: str = "") -> dict[str, Rows]:
        """Return the rows of some parts, by part and identity: the row's hash, and its key as text."""
        statement = (
            f"SELECT {self._text(part)}, {self.identity(key)}, {hash_expression(self.dialect, columns, self._alias(columns))}, "
            f"{key_expression(self.dialect, [column.name for column in key], self.alias, KEY_SEPARATOR)} "
            f"FROM {self.relation} WHERE {self.condition} AND {self._text(part)} IN ({', '.join(map(literal, names))}){more}"
        )
        found: dict[str, Rows] = {name: {} for name in names}
        for name, identity, content, text in self.run(statement):
            found[str(name)][int(identity)] = (int(content), str(text))
        return found


Rows = dict[int, tuple[int, str]]


def key_part(key: Sequence[Column], lowest: int, highest: int, view: View) -> str:
    """Return the expression that parts rows by ranges of a whole-number key, else by the hash of the key."""
    if is_whole_number(key):
        width = max(1, -(-(highest - lowest + 1) // PARTS))
        name = quoted(view.dialect, key[0].name, view.alias)
        # Both divide whole numbers and cut towards zero.
        division = "div" if view.dialect == "spark" else "/"
        return f"((CAST({name} AS BIGINT) - ({lowest})) {division} {width})"
    return f"({view.identity(key)} % {PARTS})"


def key_part_name(key: Sequence[Column], lowest: int, highest: int, part: str) -> str:
    """Return a part's name for a person."""
    if is_whole_number(key):
        width = max(1, -(-(highest - lowest + 1) // PARTS))
        begin = lowest + int(part) * width
        return f"{key[0].name} {begin}..{begin + width - 1}"
    return f"key hash {part} of {PARTS}"


def is_whole_number(key: Sequence[Column]) -> bool:
    """Tell whether a key is one whole number."""
    return len(key) == 1 and key[0].kind == "integer"


def differing(source: Mapping[str, Group], core: Mapping[str, Group]) -> list[str]:
    """Return the parts that differ, in their order."""
    return sorted(name for name in {*source, *core} if source.get(name) != core.get(name))


def differing_rows(
    source: View,
    core: View,
    parts: tuple[str, str],
    groups: tuple[Mapping[str, Group], Mapping[str, Group]],
    key: Sequence[Column],
    columns: Sequence[Column],
) -> Iterator[tuple[str, Rows, Rows]]:
    """Fetch the rows of differing parts from both sides, a bounded number at a time.

    Parameters
    ----------
    parts
        The expressions that part the source and core.
    groups
        What `View.groups` found with them.

    Yields
    ------
    tuple
        Name of the part, rows of the source, rows of core; equal rows are left out.
    """

    def fetched(names: Sequence[str], more: tuple[str, str] = ("", "")) -> Iterator[tuple[str, Rows, Rows]]:
        here = source.rows(parts[0], names, key, columns, more[0])
        there = core.rows(parts[1], names, key, columns, more[1])
        for name in names:
            for identity in [one for one in here[name] if there[name].get(one, ("",))[0] == here[name][one][0]]:
                del here[name][identity], there[name][identity]
            yield name, here[name], there[name]

    together: list[str] = []
    room = ROWS_AT_ONCE
    for name in differing(*groups):
        size = max(found[name].rows for found in groups if name in found)
        if together and size > room:
            yield from fetched(together)
            together, room = [], ROWS_AT_ONCE
        if size <= room:
            together.append(name)
            room -= size
            continue
        sub = [f"({view.identity(key)} % {SUBPARTS})" for view in (source, core)]
        within = [
            view.groups(expression, columns, f" AND {view._text(part)} = {literal(name)}")
            for view, expression, part in zip((source, core), sub, parts, strict=True)
        ]
        for one in differing(*within):
            yield from fetched([name], (f" AND {sub[0]} = {one}", f" AND {sub[1]} = {one}"))
    if together:
        yield from fetched(together)
