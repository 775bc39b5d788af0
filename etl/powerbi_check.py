"""`python -m etl.powerbi_check`: whether the Power BI project is whole, told without Power BI, which runs on Windows only.

Files are of the kinds that they say, every reference in them resolves, and each table and column is one of the marts.
"""

from __future__ import annotations

import argparse
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from etl.log import run_main
from etl.powerbi import (
    AGGREGATE,
    DATES,
    MEASURE,
    NAME,
    PROJECT,
    Model,
    Visual,
    fact_of,
    field_of,
    objects,
    pages_folder,
    read_json,
    read_model,
    read_visuals,
    reading,
    tables_of,
)
from etl.settings import ROOT
from etl.tmdl import PowerBiError

MARTS = ROOT / "hive" / "mart" / "models" / "marts.yml"
TYPES = {"bigint": "int64", "int": "int64", "date": "dateTime", "timestamp": "dateTime"}
"""Types of the model, where they are called otherwise than in Hive."""
KINDS = {
    "*.pbip": ("pbip/pbipProperties", ("version", "artifacts")),
    "*.SemanticModel/definition.pbism": ("item/semanticModel/definitionProperties", ("version",)),
    "*.Report/definition.pbir": ("item/report/definitionProperties", ("version", "datasetReference")),
    "*.Report/definition/version.json": ("item/report/definition/versionMetadata", ("version",)),
    "*.Report/definition/report.json": ("item/report/definition/report", ("themeCollection",)),
    "*.Report/definition/pages/pages.json": ("item/report/definition/pagesMetadata", ("pageOrder", "activePageName")),
    "*.Report/definition/pages/*/page.json": (
        "item/report/definition/page",
        ("name", "displayName", "displayOption", "width", "height"),
    ),
    "*.Report/definition/pages/*/visuals/*/visual.json": ("item/report/definition/visualContainer", ("name", "position", "visual")),
}
"""Each JSON file's kind, as its $schema names it, and what it must hold."""
ROLES = {
    "card": {"Values"},
    "slicer": {"Values"},
    "tableEx": {"Values"},
    "pivotTable": {"Rows", "Columns", "Values"},
    "lineChart": {"Category", "Series", "Y", "Tooltips"},
    "columnChart": {"Category", "Series", "Y", "Tooltips"},
    "clusteredColumnChart": {"Category", "Series", "Y", "Tooltips"},
    "clusteredBarChart": {"Category", "Series", "Y", "Tooltips"},
}
"""Field wells of the kinds of visuals in use."""
_POWER_BI_DOES = re.compile(r"(?:\b(?:DIVIDE|IF)\b|[\d.]+|[-+*/(),\s])*")


def problems(project: Path = PROJECT) -> list[str]:
    """Return what is wrong with the project, one sentence each; none where it is whole."""
    try:
        # References are followed only through what is there and is what it says.
        if found := list(file_problems(project)):
            return found
        model = read_model(project)
        types = {table: {name: type for name, (type, _) in columns.items()} for table, columns in marts().items()}
        found = [
            *table_problems(project),
            *measure_problems(model),
            *relationship_problems(model),
            *source_problems(model, types),
            *description_problems(model),
            *connection_problems(project),
            *page_problems(project),
        ]
        if found:
            return found
        visuals = read_visuals(project)
        found = [sentence for visual in visuals for sentence in visual_problems(visual, model)]
        return found or list(reach_problems(visuals, model))
    except PowerBiError as error:
        return [str(error)]


def marts() -> dict[str, dict[str, tuple[str, str]]]:
    """Return type and description of each column, by table, as the marts declare them."""
    declared = yaml.safe_load(MARTS.read_text(encoding="utf-8"))["models"]
    return {one["name"]: {column["name"]: (column["data_type"], column["description"]) for column in one["columns"]} for one in declared}


def file_problems(project: Path) -> Iterator[str]:
    """Yield which JSON files are missing, or are not what they say."""
    for pattern, (kind, needed) in KINDS.items():
        paths = sorted(project.glob(pattern))
        if not paths:
            yield f"there is no {pattern}"
        for path in paths:
            content, where = read_json(path), path.relative_to(project)
            schema = rf"https://developer\.microsoft\.com/json-schemas/fabric/{kind}/\d+\.\d+\.\d+/schema\.json"
            if not re.fullmatch(schema, content.get("$schema", "")):
                yield f"{where}: its $schema is not one of {kind}"
            yield from (f"{where}: {key} is missing" for key in needed if key not in content)
            if content.get("name", path.parent.name) != path.parent.name:
                yield f"{where}: its name is {content['name']}, its folder's {path.parent.name}"
    for artifact in read_json(project / f"{NAME}.pbip").get("artifacts", ()):
        if not (project / artifact["report"]["path"] / "definition.pbir").is_file():
            yield f"{NAME}.pbip: there is no report {artifact['report']['path']}"
    report = project / f"{NAME}.Report"
    model = read_json(report / "definition.pbir").get("datasetReference", {}).get("byPath", {}).get("path", "")
    if not (report / model / "definition.pbism").is_file():
        yield f"definition.pbir: there is no semantic model {model!r}"


def table_problems(project: Path) -> Iterator[str]:
    """Yield what is wrong with the tables in themselves, and with the date table's mark."""
    tables = objects(project, "table")
    tags: Counter[str] = Counter()
    keys = []
    for file, table in tables:
        names = Counter(one.name.lower() for one in table.children if one.kind in ("column", "measure"))
        yield from (f"{file}: {name} is declared {count} times" for name, count in names.items() if count > 1)
        if file != f"{table.name}.tmdl":
            yield f"{file} holds table {table.name}"
        if [(one.get("mode"), f'[Name = "{table.name}"' in one.get("source")) for one in table.all("partition")] != [("directQuery", True)]:
            yield f"{file}: it needs one partition, of DirectQuery, of the table of its name"
        for one in table.all("column"):
            if one.get("sortByColumn") not in {"", *(other.name for other in table.all("column"))}:
                yield f"{file}: {one.name} is sorted by {one.get('sortByColumn')}, which is no column"
            if one.all("isKey") and table.get("dataCategory") == "Time":
                keys.append((table.name, one.name, one.get("dataType")))
        tags.update(one.get("lineageTag") for one in (table, *table.all("column"), *table.all("measure")))
    if keys != [(DATES, "dated_on", "dateTime")]:
        yield f"{DATES}.tmdl: it has to be marked as the date table, with dated_on as its key"
    for tag, count in tags.items():
        try:
            uuid.UUID(tag)
        except ValueError:
            yield f"lineageTag {tag!r} is no UUID"
        if count > 1:
            yield f"lineageTag {tag} stands {count} times"
    told, there = sorted(node.name for _, node in objects(project, "ref")), sorted(f"table {table.name}" for _, table in tables)
    if told != there:
        yield f"model.tmdl refers to {', '.join(told)}; there are {', '.join(there)}"
    measures = Counter(one.name.lower() for _, table in tables for one in table.all("measure"))
    yield from (f"measure {name} is declared {count} times" for name, count in measures.items() if count > 1)


def measure_problems(model: Model) -> Iterator[str]:
    """Yield which measures name what is not there, or functions of which the SQL is not known."""
    for name, measure in model.measures.items():
        rest = AGGREGATE.sub("", measure.dax)
        for _, table, column in AGGREGATE.findall(measure.dax):
            if table not in model.tables or (column and column not in model.tables[table]):
                yield f"measure {name} names {table}[{column}], which is no column"
        yield from (
            f"measure {name} names [{other}], which is no measure" for other in MEASURE.findall(rest) if other not in model.measures
        )
        if _POWER_BI_DOES.fullmatch(MEASURE.sub("", rest)) is None or rest.count("(") != rest.count(")"):
            yield f"measure {name} has DAX that etl/powerbi.py cannot turn into SQL: {measure.dax}"


def relationship_problems(model: Model) -> Iterator[str]:
    """Yield which relationships are not of two columns of one type."""
    for ends in model.relationships:
        names = " and ".join(".".join(end) for end in ends)
        found = [model.tables.get(table, {}).get(column) for table, column in ends]
        types = {column.type for column in found if column is not None}
        if None in found:
            yield f"relationships.tmdl: one of {names} is no column"
        elif len(types) > 1:
            yield f"relationships.tmdl: {names} are {' and '.join(sorted(types))}"


def source_problems(model: Model, tables: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield where the model is not what the database mart has; `tables` holds Hive's types by table and column."""
    for name, columns in model.tables.items():
        if name not in tables:
            yield f"{name}.tmdl: there is no table mart.{name}"
            continue
        for column_name, column in columns.items():
            if column.source != column_name:
                yield f"{name}.tmdl: {column_name} comes from {column.source}; a thing has the same name everywhere"
            elif column_name not in tables[name]:
                yield f"{name}.tmdl: mart.{name} has no column {column_name}"
            else:
                hive = tables[name][column_name]
                wanted = "decimal" if hive.startswith("decimal") else TYPES.get(hive, hive)
                if column.type != wanted:
                    yield f"{name}.tmdl: {column_name} is {column.type}; {hive} of Hive is {wanted}"
        yield from (f"{name}.tmdl: column {missing} is missing" for missing in tables[name] if missing not in columns)
    yield from (f"{missing}.tmdl is missing" for missing in tables if missing not in model.tables)


def description_problems(model: Model) -> Iterator[str]:
    """Yield which columns are described otherwise than in the marts."""
    declared = marts()
    for table, columns in model.tables.items():
        for name, column in columns.items():
            if name in declared.get(table, {}) and column.description != declared[table][name][1]:
                yield f"{table}.tmdl: {name} is described otherwise than in marts.yml"


def connection_problems(project: Path) -> Iterator[str]:
    """Yield what is wrong with the parameters, the connector and the .pbids file."""
    expressions = {node.name: node.value for _, node in objects(project, "expression")}
    for name, kind in (("Host", "Text"), ("Port", "Number")):
        if f'meta [IsParameterQuery=true, Type="{kind}"' not in expressions.get(name, ""):
            yield f"expressions.tmdl: there is no parameter {name} of type {kind}"
    connector = (project / "CardFraud.pq").read_text(encoding="utf-8")
    called = re.fullmatch(r"([\w.]+)\(Host, Port\)", expressions.get("Marts", ""))
    if called is None or f"shared {called[1]} = (host as text, port as number)" not in connector:
        yield "expressions.tmdl: Marts is no call of a function that CardFraud.pq shares"
    for needed in ("Odbc.DataSource(", "SupportsDirectQuery = true", "TestConnection ="):
        if needed not in connector:
            yield f"CardFraud.pq: {needed!r} is missing"
    (connection,) = read_json(project / f"{NAME}.pbids")["connections"]
    if connection["mode"] != "DirectQuery" or f'#"{connection["details"]["protocol"]}" = [' not in connector:
        yield f"{NAME}.pbids: CardFraud.pq does not know its protocol, or its mode is not DirectQuery"


def page_problems(project: Path) -> Iterator[str]:
    """Yield what is wrong with the order of the pages, and with the places and wells of the visuals on them."""
    folder = pages_folder(project)
    told, there = read_json(folder / "pages.json"), sorted(path.parent.name for path in folder.glob("*/page.json"))
    if sorted(told["pageOrder"]) != there:
        yield f"pages.json tells of {', '.join(sorted(told['pageOrder']))}; there are {', '.join(there)}"
    if told["activePageName"] not in there:
        yield f"pages.json: there is no page {told['activePageName']} to begin with"
    for page in there:
        content = read_json(folder / page / "page.json")
        paths = sorted((folder / page).glob("visuals/*/visual.json"))
        for path in paths:
            with reading(f"{page}/{path.parent.name}"):
                yield from place_problems(f"{page}/{path.parent.name}", read_json(path), content)
        with reading(page):
            named = {one[end] for one in content.get("visualInteractions", ()) for end in ("source", "target")}
        unknown = named - {path.parent.name for path in paths}
        yield from (f"{page}: its visualInteractions name {one}, which is not on it" for one in sorted(unknown))


def place_problems(where: str, content: Mapping[str, Any], page: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the place and the wells of a visual."""
    at, visual = content["position"], content["visual"]
    if at["x"] < 0 or at["y"] < 0 or at["x"] + at["width"] > page["width"] or at["y"] + at["height"] > page["height"]:
        yield f"{where}: it does not lie on its page"
    wells = visual.get("query", {}).get("queryState", {})
    if not set(wells) <= ROLES.get(visual["visualType"], set()):
        yield f"{where}: {visual['visualType']} is not known to have the wells {', '.join(wells)}"
    for one in (one for well in wells.values() for one in well["projections"]):
        if one["queryRef"] != f"{field_of(one['field']).table}.{field_of(one['field']).name}":
            yield f"{where}: queryRef {one['queryRef']} is another field's"
    if visual["visualType"] == "slicer":
        yield from choice_problems(where, visual)


def choice_problems(where: str, slicer: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a slicer opens with a choice of another column's values."""
    (projection,) = slicer["query"]["queryState"]["Values"]["projections"]
    own = field_of(projection["field"])
    for one in slicer.get("objects", {}).get("general", ()):
        chosen = one["properties"].get("filter", {}).get("filter", {"From": (), "Where": ()})
        columns = [column["Column"]["Property"] for part in chosen["Where"] for column in part["Condition"]["In"]["Expressions"]]
        named = {f"{source['Entity']}.{column}" for source in chosen["From"] for column in columns}
        yield from (f"{where}: it opens with a choice of {other}, not of its own" for other in named - {f"{own.table}.{own.name}"})


def visual_problems(visual: Visual, model: Model) -> Iterator[str]:
    """Yield which fields of a visual the model does not have, and why it could not be one statement."""
    where, sort = f"{visual.page}/{visual.name}", [visual.sort[0]] if visual.sort else []
    asked = dict.fromkeys((*visual.fields, *(one for one, _ in visual.filters), *sort))
    unknown = [one for one in asked if not model.has(one)]
    yield from (f"{where}: the model has no {'measure' if one.is_measure else 'column'} {one.table}.{one.name}" for one in unknown)
    yield from (f"{where}: it is sorted by {one.name}, which it does not show" for one in sort if one not in visual.fields)
    shown = set() if unknown else tables_of(visual, model)
    facts = shown - {DATES}
    if len(facts) > 1 or (facts < shown and any(model.join(fact) is None for fact in facts)):
        yield f"{where}: it mixes {' and '.join(sorted(shown))}, which have no relationship"


def reach_problems(visuals: Sequence[Visual], model: Model) -> Iterator[str]:
    """Yield which visuals stay as they are while a slicer or filter of their page says something else, without telling so."""
    for visual in (one for one in visuals if not one.is_slicer):
        where, fact = f"{visual.page}/{visual.name}", fact_of(visual, model)
        for slicer in (one for one in visuals if one.is_slicer and one.page == visual.page):
            (field,) = slicer.fields
            if not model.reaches(field.table, fact) and slicer.name not in visual.kept_from:
                yield (
                    f"{where}: {slicer.name} filters {field.table}, which does not reach {fact}; take both from one table, or keep the one "
                    "from the other by visualInteractions (NoFilter) in page.json"
                )
        missed = {one.name for one, _ in visual.filters if not model.reaches(one.table, fact)}
        if (missed or visual.kept_from) and not visual.subtitle:
            yield f"{where}: {' and '.join(sorted(missed | visual.kept_from))} leave it as it is; tell people so in its subtitle"


def main() -> None:
    """Check the project.

    Raises
    ------
    PowerBiError
        With all that is wrong.
    """
    argparse.ArgumentParser(prog="python -m etl.powerbi_check", description=__doc__).parse_args()
    if found := problems():
        raise PowerBiError(f"hive/powerbi is not whole: {'; '.join(found)}; correct that, or save it again in Power BI Desktop")
    model, visuals = read_model(), read_visuals()
    print(f"{len(model.tables)} tables, {len(model.measures)} measures, {len({one.page for one in visuals})} pages, {len(visuals)} visuals")


if __name__ == "__main__":
    run_main(main)
