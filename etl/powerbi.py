"""The Power BI project in hive/powerbi: its model, its visuals, and the SQL by which DirectQuery asks for a visual's data.

The statements have the shape that Power Query folds: columns, join with the dates, groups, around them what is not empty, a limit.
bash/bench.sh marts measures them, so that what is measured is what the pages ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.settings import ROOT
from etl.tmdl import Node, PowerBiError, parse, unquoted

PROJECT = ROOT / "hive" / "powerbi"
NAME = "card_fraud"
DATES = "dates"
RAW_LIMIT, LIMIT = 501, 1_000_001
"""Rows of a table without measures that Power BI asks for, and the most that it takes of any statement."""


# The model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the model, its type the model's."""

    type: str
    source: str
    description: str


@dataclass(frozen=True)
class Measure:
    """A measure: its table and its DAX."""

    table: str
    dax: str


@dataclass(frozen=True)
class Aggregate:
    """What a measure needs of a table; the column is empty for COUNTROWS."""

    function: str
    table: str
    column: str


@dataclass(frozen=True)
class Model:
    """The semantic model.

    Attributes
    ----------
    tables
        Columns by name, by table.
    relationships
        From table and column to table and column, many to one.
    """

    tables: dict[str, dict[str, Column]]
    measures: dict[str, Measure]
    relationships: list[tuple[tuple[str, str], tuple[str, str]]]

    def aggregates(self, measure: str) -> list[Aggregate]:
        """Return what a measure needs, and what the measures in it need, each once."""
        dax = self.measures[measure].dax
        found = [Aggregate(*parts) for parts in AGGREGATE.findall(dax)]
        for name in MEASURE.findall(AGGREGATE.sub("", dax)):
            found += self.aggregates(name)
        return list(dict.fromkeys(found))

    def join(self, table: str) -> tuple[str, str] | None:
        """Return by which columns a table and the dates are related, where they are."""
        return next(((source[1], to[1]) for source, to in self.relationships if (source[0], to[0]) == (table, DATES)), None)

    def reaches(self, table: str, other: str) -> bool:
        """Tell whether a filter on a table reaches another one: it is the same, or the dates and related to them."""
        return table == other or (table == DATES and self.join(other) is not None)

    def has(self, one: Field) -> bool:
        """Tell whether a field is one of the model's."""
        if one.is_measure:
            return one.name in self.measures and self.measures[one.name].table == one.table
        return one.name in self.tables.get(one.table, {})


SQL = {
    "SUM": "sum({})",
    "AVERAGE": "avg({})",
    "MIN": "min({})",
    "MAX": "max({})",
    "DISTINCTCOUNT": "count(distinct {})",
    "HASONEVALUE": "count(distinct {})",
    "COUNTROWS": "count(*)",
}
"""What the DAX functions fold to; the rest of a measure (DIVIDE, IF) Power BI does itself."""
AGGREGATE = re.compile(rf"\b({'|'.join(SQL)})\((\w+)(?:\[(\w+)\])?\)")
MEASURE = re.compile(r"\[([^\]]+)\]")


def objects(project: Path, kind: str) -> list[tuple[str, Node]]:
    """Return the objects of a kind in the model's files, each with its file's name.

    Raises
    ------
    PowerBiError
        Where a text is no TMDL, or none is there.
    """
    folder = project / f"{NAME}.SemanticModel" / "definition"
    files = sorted(folder.rglob("*.tmdl"))
    if not files:
        raise PowerBiError(f"there is no TMDL in {folder}; bring it back from the repository")
    return [(path.name, node) for path in files for node in parse(path.read_text(encoding="utf-8"), path.name).all(kind)]


def read_model(project: Path = PROJECT) -> Model:
    """Read the model; raises as `objects` does."""
    tables: dict[str, dict[str, Column]] = {}
    measures: dict[str, Measure] = {}
    for _, node in objects(project, "table"):
        tables[node.name] = {one.name: Column(one.get("dataType"), one.get("sourceColumn"), one.description) for one in node.all("column")}
        measures |= {one.name: Measure(node.name, one.value) for one in node.all("measure")}
    relationships = [
        (_end(node.get("fromColumn")), _end(node.get("toColumn")))
        for _, node in objects(project, "relationship")
        # One that is not active filters nothing.
        if node.get("isActive") != "false"
    ]
    return Model(tables, measures, relationships)


def _end(text: str) -> tuple[str, str]:
    table, _, column = text.partition(".")
    return unquoted(table), unquoted(column)


# The report ------------------------------------------------------------------------------------------------------

COMPARISONS = ("=", ">", ">=", "<", "<=")
"""By ComparisonKind of a filter."""


@dataclass(frozen=True)
class Field:
    """A column or measure that a visual shows or a filter is on."""

    table: str
    name: str
    is_measure: bool


@dataclass(frozen=True)
class Visual:
    """A visual that shows data.

    Attributes
    ----------
    fields
        What it shows, in order.
    filters
        Conditions of its page, of what the page's slicers have chosen when it opens, and of itself; `{}` is the column.
    sort
        The field that it is sorted by, and the direction.
    kept_from
        Slicers that its page keeps from it.
    subtitle
        What stands below its title.
    """

    page: str
    name: str
    fields: tuple[Field, ...]
    filters: tuple[tuple[Field, str], ...]
    sort: tuple[Field, str] | None
    is_slicer: bool = False
    kept_from: frozenset[str] = frozenset()
    subtitle: str = ""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    PowerBiError
        Where it is missing or is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PowerBiError(f"{path.parent.name}/{path.name} cannot be read: {error}; bring it back from the repository") from error


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Tell which file it is that lacks something.

    Raises
    ------
    PowerBiError
        In place of what Python says of a key or a kind that is not there.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PowerBiError(f"{where} is not as Power BI writes it: {error!r}; bring it back from the repository") from error


def pages_folder(project: Path) -> Path:
    """Folder of the report's pages."""
    return project / f"{NAME}.Report" / "definition" / "pages"


def field_of(expression: Mapping[str, Any]) -> Field:
    """Return the field that a query expression names.

    Raises
    ------
    PowerBiError
        Where it is neither a column nor a measure.
    """
    for kind in ("Column", "Measure"):
        if kind in expression:
            return Field(expression[kind]["Expression"]["SourceRef"]["Entity"], expression[kind]["Property"], kind == "Measure")
    raise PowerBiError(f"a field is neither a column nor a measure but {', '.join(expression)}; make it a measure of the model")


def conditions(condition: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a filter's condition that AND joins, as SQL; `{}` stands for the column.

    Raises
    ------
    PowerBiError
        Where it is of a kind that is not known here.
    """
    match condition:
        case {"And": {"Left": left, "Right": right}}:
            yield from conditions(left)
            yield from conditions(right)
        case {"Comparison": {"ComparisonKind": int(kind), "Right": {"Literal": {"Value": value}}}}:
            yield f"{{}} {COMPARISONS[kind]} {_literal(value)}"
        case {"In": {"Values": values}}:
            yield f"{{}} in ({', '.join(_literal(one['Literal']['Value']) for (one,) in values)})"
        case _:
            raise PowerBiError(f"a filter is of the kind {', '.join(condition)}, which etl/powerbi.py cannot turn into SQL; extend it")


def _literal(value: str) -> str:
    """Return a literal of the report (a quoted text, 1L, 1.5D, true) as SQL."""
    if value.startswith("'"):
        return "'" + value[1:-1].replace("''", "'").replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value.rstrip("LDM")


def _filters(container: Mapping[str, Any]) -> Iterator[tuple[Field, str]]:
    """Yield the conditions of a page or a visual; a filter without one only stands ready for its user."""
    for one in container.get("filterConfig", {}).get("filters", ()):
        for part in one.get("filter", {}).get("Where", ()):
            for text in conditions(part["Condition"]):
                yield field_of(one["field"]), text


def _chosen(slicer: Mapping[str, Any]) -> Iterator[tuple[Field, str]]:
    """Yield the condition of what a slicer has chosen when its page opens; none where that is everything."""
    visual = slicer["visual"]
    (projection,) = visual["query"]["queryState"]["Values"]["projections"]
    for one in visual.get("objects", {}).get("general", ()):
        for part in one["properties"].get("filter", {}).get("filter", {}).get("Where", ()):
            for text in conditions(part["Condition"]):
                yield field_of(projection["field"]), text


def read_visuals(project: Path = PROJECT) -> list[Visual]:
    """Read the visuals that show data, in the order of the pages and of their tabs.

    Raises
    ------
    PowerBiError
        Where a file cannot be read, or asks something that is not known here.
    """
    folder, found = pages_folder(project), []
    for page in read_json(folder / "pages.json")["pageOrder"]:
        with reading(page):
            content = read_json(folder / page / "page.json")
            of_page = tuple(_filters(content))
            kept = [(one["source"], one["target"]) for one in content.get("visualInteractions", ()) if one["type"] == "NoFilter"]
        containers, chosen = [], {}
        for path in sorted((folder / page).glob("visuals/*/visual.json")):
            with reading(f"{page}/{path.parent.name}"):
                container = read_json(path)
                containers.append((container["position"].get("tabOrder", 0), path.parent.name, container))
                if container["visual"]["visualType"] == "slicer":
                    chosen[container["name"]] = tuple(_chosen(container))
        for _, name, container in sorted(containers, key=lambda one: one[:2]):
            with reading(f"{page}/{name}"):
                query = container["visual"].get("query")
                if query is None:
                    continue
                fields = dict.fromkeys(field_of(one["field"]) for role in query["queryState"].values() for one in role["projections"])
                sort = next(((field_of(one["field"]), one["direction"]) for one in query.get("sortDefinition", {}).get("sort", ())), None)
                kept_from = frozenset(source for source, target in kept if target == name)
                by_slicers = [part for slicer, parts in chosen.items() if slicer not in {name, *kept_from} for part in parts]
                filters = (*of_page, *by_slicers, *_filters(container))
                is_slicer = name in chosen
                found.append(Visual(page, name, tuple(fields), filters, sort, is_slicer, kept_from, _subtitle(container)))
    return found


def _subtitle(container: Mapping[str, Any]) -> str:
    shown = [one["properties"] for one in container["visual"].get("visualContainerObjects", {}).get("subTitle", ())]
    return "".join(str(one["text"]["expr"]["Literal"]["Value"])[1:-1] for one in shown if "text" in one)


# As SQL ----------------------------------------------------------------------------------------------------------


def tables_of(visual: Visual, model: Model) -> set[str]:
    """Return the tables whose columns a visual shows, itself or in its measures."""
    columns = {one.table for one in visual.fields if not one.is_measure}
    return columns | {need.table for one in visual.fields if one.is_measure for need in model.aggregates(one.name)}


def fact_of(visual: Visual, model: Model) -> str:
    """Return the one table that a visual is about; it may show columns of the dates beside it."""
    (fact,) = tables_of(visual, model) - {DATES} or {DATES}
    return fact


def statement(visual: Visual, model: Model) -> str:
    """Return the statement that asks for a visual's data: its groups and the aggregates that its measures need."""
    fact = fact_of(visual, model)
    groups = [one for one in visual.fields if not one.is_measure]
    needs = list(dict.fromkeys(need for one in visual.fields if one.is_measure for need in model.aggregates(one.name)))
    columns = {(one.table, one.name) for one in groups} | {(need.table, need.column) for need in needs if need.column}
    join = model.join(fact)
    filters = [(one, text) for one, text in visual.filters if model.reaches(one.table, fact)]
    rows = _rows(fact, columns, filters)
    if join and any(one.table == DATES for one in (*groups, *(one for one, _ in filters))):
        key, target = join
        outer, inner = (
            _rows(table, columns | {(table, column)}, filters, as_name)
            for table, column, as_name in ((fact, key, "$Outer"), (DATES, target, "$Inner"))
        )
        shown = ", ".join(f"`{'$Inner' if table == DATES else '$Outer'}`.`{name}`" for table, name in sorted(columns)) or "1 as `$One`"
        rows = f"(select {shown} from {outer} inner join {inner} on `$Outer`.`{key}` = `$Inner`.`{target}`) as `rows`"
    keys = [f"`rows`.`{one.name}`" for one in groups]
    # By position: two measures may need the same column.
    sums = [f"{SQL[need.function].format(f'`rows`.`{need.column}`')} as `a{at}`" for at, need in enumerate(needs)]
    grouped = f"select {', '.join([*keys, *sums])} from {rows}" + (f" group by {', '.join(keys)}" if keys else "")
    results = [f"`_`.`a{at}`" for at in range(len(needs))]
    text = f"select {', '.join([*(f'`_`.`{one.name}`' for one in groups), *results])} from ({grouped}) as `_`"
    if groups and needs:
        text += f" where {' or '.join(f'not {result} is null' for result in results)}"
    if not needs and visual.sort:
        text += f" order by `_`.`{visual.sort[0].name}` {'desc' if visual.sort[1] == 'Descending' else 'asc'}"
    return f"{text} limit {LIMIT if needs else RAW_LIMIT}"


def _rows(table: str, columns: set[tuple[str, str]], filters: list[tuple[Field, str]], as_name: str = "rows") -> str:
    """Return the columns of one table, filtered, as a subselect."""
    shown = ", ".join(f"`$Table`.`{name}`" for owner, name in sorted(columns) if owner == table) or "1 as `$One`"
    where = " and ".join(text.format(f"`$Table`.`{one.name}`") for one, text in filters if one.table == table)
    return f"(select {shown} from `mart`.`{table}` as `$Table`{f' where {where}' if where else ''}) as `{as_name}`"
