"""The Power BI project is whole, damage to it is named, and its visuals become SQL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest

from etl.powerbi import PROJECT, Field, Visual, read_json, read_model, read_visuals, statement
from etl.powerbi_check import problems
from etl.tmdl import PowerBiError, parse

MODEL = "card_fraud.SemanticModel/definition"
TABLES = f"{MODEL}/tables"
PAGES = "card_fraud.Report/definition/pages"
CURRENCY = f"{PAGES}/predicted_fraud/visuals/slicer_currency/visual.json"
CHART = f"{PAGES}/pattern_analysis/visuals/bar_country/visual.json"
Damage = Callable[[Path], None]


def test_the_project_is_whole() -> None:
    assert problems() == []


def test_the_pages_are_those_that_people_were_promised() -> None:
    assert [
        read_json(PROJECT / PAGES / page / "page.json")["displayName"] for page in read_json(PROJECT / PAGES / "pages.json")["pageOrder"]
    ] == [
        "Raw data",
        "Predicted fraud",
        "Pattern analysis",
        "Model performance",
        "Feature insight",
        "Data quality",
    ]


def test_amounts_of_different_currencies_are_never_added() -> None:
    model = read_model()
    sums = [
        aggregate for name in model.measures for aggregate in model.aggregates(name) if model.tables[aggregate.table].get(aggregate.column)
    ]
    money = [one for one in sums if one.function == "SUM" and model.tables[one.table][one.column].type == "decimal"]
    assert len(set(money)) == 5
    for one in money:
        dax = [measure.dax for measure in model.measures.values() if f"SUM({one.table}[{one.column}])" in measure.dax]
        assert dax == [f"IF(HASONEVALUE({one.table}[currency]), SUM({one.table}[{one.column}]))"]


def test_money_is_shown_on_pages_that_open_with_one_currency() -> None:
    model = read_model()
    for visual in read_visuals():
        needs = [one for field in visual.fields if field.is_measure for one in model.aggregates(field.name)]
        needed = {one.table for one in needs if one.column == "currency"}
        chosen = {field.table for field, _ in visual.filters if field.name == "currency"}
        assert needed <= chosen, f"{visual.page}/{visual.name}"


def test_what_is_chosen_in_a_slicer_is_asked_by_every_visual_that_is_not_kept_from_it() -> None:
    model, visuals = read_model(), read_visuals()
    for slicer in (one for one in visuals if one.is_slicer):
        (field,) = slicer.fields
        for visual in (one for one in visuals if one.page == slicer.page and not one.is_slicer):
            asked = statement(replace_fields(visual, filters=(*visual.filters, (field, "{} in ('x')"))), model)
            assert (f"`{field.name}` in ('x')" in asked) == (slicer.name not in visual.kept_from), f"{visual.name}, {slicer.name}"


def test_a_page_opens_with_what_its_slicers_have_chosen() -> None:
    visuals = {f"{one.page}/{one.name}": one for one in read_visuals()}
    currency = (Field("fraud_daily", "currency", False), "{} in ('EUR')")
    assert currency in visuals["predicted_fraud/card_transaction_count"].filters
    assert currency in visuals["predicted_fraud/slicer_country"].filters
    # A slicer lists what else could be chosen, and the page keeps it from tables that it does not reach.
    assert currency not in visuals["predicted_fraud/slicer_currency"].filters
    assert currency not in visuals["predicted_fraud/table_riskiest_transactions"].filters
    performance = [statement(one, read_model()) for one in visuals.values() if one.page == "model_performance" and not one.is_slicer]
    assert len(performance) == 8
    assert all("`$Table`.`is_after_training` in (true)" in text for text in performance)


def replace(file: str, old: str, new: str) -> Damage:
    """Damage by other text in a file."""

    def damage(project: Path) -> None:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new, 1))

    return damage


def everywhere(file: str, old: str, new: str) -> Damage:
    """Damage by another name, but for that of the visual itself."""

    def damage(project: Path) -> None:
        text = (project / file).read_text().replace(old, new)
        (project / file).write_text(text.replace(f"bar_{new}", f"bar_{old}"))

    return damage


def terminals_by_day(project: Path) -> None:
    """Damage by a chart of terminals by day."""
    path = project / PAGES / "predicted_fraud/visuals/line_by_day/visual.json"
    content = json.loads(path.read_text())
    column = {"Column": {"Expression": {"SourceRef": {"Entity": "terminal_risk"}}, "Property": "risk_rank"}}
    content["visual"]["query"]["queryState"]["Y"]["projections"] = [{"field": column, "queryRef": "terminal_risk.risk_rank"}]
    path.write_text(json.dumps(content))


def replace_last(project: Path, file: str, old: str, new: str) -> None:
    """Damage the last of the places where a text stands."""
    (project / file).write_text(new.join((project / file).read_text().rsplit(old, 1)))


def remove(path: str) -> Damage:
    """Damage by a file or folder that is gone."""
    return lambda project: shutil.rmtree(project / path) if (project / path).is_dir() else (project / path).unlink()


YEAR = (
    "\t/// Its year\n\tcolumn calendar_year\n\t\tdataType: int64\n\t\tformatString: 0\n"
    "\t\tlineageTag: 78090ec0-cc38-5fcf-81fd-dda1aa0883f3\n\t\tsummarizeBy: none\n\t\tsourceColumn: calendar_year\n"
    "\n\t\tannotation SummarizationSetBy = User\n\n"
)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a column that the mart does not have": (
        replace(f"{TABLES}/fraud_daily.tmdl", "column country", "column land"),
        "fraud_daily.tmdl: land comes from country",
    ),
    "a column and its source that the mart does not have": (
        replace(f"{TABLES}/dates.tmdl", YEAR, YEAR + YEAR.replace("calendar_year", "era").replace("78090ec0", "78090ec1")),
        "dates.tmdl: mart.dates has no column era",
    ),
    "a column left out": (
        replace(f"{TABLES}/dates.tmdl", YEAR, ""),
        "dates.tmdl: column calendar_year is missing",
    ),
    "a wrong type": (
        replace(f"{TABLES}/scored_transactions.tmdl", "column amount\n\t\tdataType: decimal", "column amount\n\t\tdataType: double"),
        "scored_transactions.tmdl: amount is double; decimal(12,2) of Hive is decimal",
    ),
    "another description": (
        replace(f"{TABLES}/dates.tmdl", "/// The day (UTC)", "/// A day"),
        "dates.tmdl: dated_on is described otherwise",
    ),
    "a measure of an unknown column": (
        replace(f"{TABLES}/fraud_daily.tmdl", "SUM(fraud_daily[frauds])", "SUM(fraud_daily[crimes])"),
        "measure Fraud count names fraud_daily[crimes], which is no column",
    ),
    "a measure of an unknown measure": (
        replace(f"{TABLES}/fraud_daily.tmdl", "DIVIDE([Fraud count], ", "DIVIDE([Crimes], "),
        "measure Fraud share names [Crimes], which is no measure",
    ),
    "DAX of which the SQL is not known": (
        replace(f"{TABLES}/fraud_daily.tmdl", "SUM(fraud_daily[frauds])", "RANKX(fraud_daily, 1)"),
        "measure Fraud count has DAX that etl/powerbi.py cannot turn into SQL: RANKX(fraud_daily, 1)",
    ),
    "a measure named as a column": (
        replace(f"{TABLES}/fraud_daily.tmdl", "measure 'Fraud count'", "measure Frauds"),
        "fraud_daily.tmdl: frauds is declared 2 times",
    ),
    "an imported table": (
        replace(f"{TABLES}/fraud_daily.tmdl", "mode: directQuery", "mode: import"),
        "fraud_daily.tmdl: it needs one partition",
    ),
    "a partition of another table": (
        replace(f"{TABLES}/fraud_daily.tmdl", 'Name = "fraud_daily"', 'Name = "fraud_hourly"'),
        "fraud_daily.tmdl: it needs one partition",
    ),
    "a lineage tag that stands twice": (
        replace(
            f"{TABLES}/dates.tmdl", "lineageTag: ac0f9141-4aef-55fd-a9f6-87204d7b3993", "lineageTag: 215adaf6-f36c-5c38-a982-b8a69ed02b88"
        ),
        "lineageTag 215adaf6-f36c-5c38-a982-b8a69ed02b88 stands 2 times",
    ),
    "a date table without its mark": (
        replace(f"{TABLES}/dates.tmdl", "\t\tisKey\n", ""),
        "dates.tmdl: it has to be marked as the date table",
    ),
    "a table that the model does not refer to": (
        replace(f"{MODEL}/model.tmdl", "ref table dates\n", ""),
        "model.tmdl refers to table customer_activity",
    ),
    "a relationship of unequal types": (
        replace(f"{MODEL}/relationships.tmdl", "toColumn: dates.dated_on", "toColumn: dates.weekday"),
        "relationships.tmdl: scored_transactions.transacted_on and dates.weekday are dateTime and int64",
    ),
    "a relationship of an unknown column": (
        replace(f"{MODEL}/relationships.tmdl", "toColumn: dates.dated_on", "toColumn: dates.day"),
        "relationships.tmdl: one of scored_transactions.transacted_on and dates.day is no column",
    ),
    "a parameter that is gone": (
        replace(f"{MODEL}/expressions.tmdl", "expression Port", "expression Gate"),
        "there is no parameter Port of type Number",
    ),
    "a source that the connector does not share": (
        replace(f"{MODEL}/expressions.tmdl", "CardFraud.Marts(", "Odbc.Query("),
        "expressions.tmdl: Marts is no call of a function that CardFraud.pq shares",
    ),
    "a connector that imports": (
        replace("CardFraud.pq", "SupportsDirectQuery = true", ""),
        "CardFraud.pq: 'SupportsDirectQuery = true' is missing",
    ),
    "a protocol that the connector does not know": (
        replace("card_fraud.pbids", "card-fraud", "odbc"),
        "card_fraud.pbids: CardFraud.pq does not know",
    ),
    "indentation by spaces": (replace(f"{MODEL}/database.tmdl", "\t", "    "), "database.tmdl, line 2, is no TMDL"),
    "a property misspelt": (
        replace(f"{TABLES}/dates.tmdl", "dataType: dateTime", "dataTyp: dateTime"),
        "dates.tmdl, line 8: dataTyp cannot stand in column",
    ),
    "a visual of an unknown column": (
        everywhere(CHART, "country", "land"),
        "the model has no column fraud_hourly.land",
    ),
    "a visual of an unknown measure": (
        everywhere(CHART, "Fraud share", "Crime share"),
        "the model has no measure fraud_hourly.Crime share by hour",
    ),
    "a visual of two unrelated tables": (
        replace(
            f"{PAGES}/data_quality/visuals/card_loaded_row_count/visual.json",
            '"projections": [',
            '"projections": [\n'
            + json.dumps(
                {
                    "field": {"Measure": {"Expression": {"SourceRef": {"Entity": "fraud_daily"}}, "Property": "Fraud count"}},
                    "queryRef": "fraud_daily.Fraud count",
                }
            )
            + ",",
        ),
        "data_quality/card_loaded_row_count: it mixes data_quality_daily and fraud_daily",
    ),
    "a visual of dates and a table without any": (
        terminals_by_day,
        "predicted_fraud/line_by_day: it mixes dates and terminal_risk, which have no relationship",
    ),
    "a visual sorted by what it does not show": (
        lambda project: replace_last(project, f"{PAGES}/raw_data/visuals/table_transactions/visual.json", "transacted_at", "scored_at"),
        "raw_data/table_transactions: it is sorted by scored_at, which it does not show",
    ),
    "a slicer of another table than what stands beside it": (
        everywhere(f"{PAGES}/pattern_analysis/visuals/slicer_category/visual.json", "fraud_hourly", "fraud_daily"),
        "pattern_analysis/column_hour: slicer_category filters fraud_daily, which does not reach fraud_hourly; take both from one table",
    ),
    "a visual that a slicer does not reach, kept from it without a word": (
        replace(f"{PAGES}/predicted_fraud/visuals/table_riskiest_terminals/visual.json", '"subTitle"', '"background"'),
        "predicted_fraud/table_riskiest_terminals: days_ago and slicer_channel and slicer_country and slicer_currency and "
        "slicer_dated_on leave it as it is; tell people so in its subtitle",
    ),
    "a visual kept from a slicer that is gone": (
        replace(f"{PAGES}/predicted_fraud/page.json", '"source": "slicer_channel"', '"source": "slicer_lane"'),
        "predicted_fraud: its visualInteractions name slicer_lane, which is not on it",
    ),
    "a slicer that opens with another column's value": (
        lambda project: replace_last(project, CURRENCY, '"Property": "currency"', '"Property": "channel"'),
        "predicted_fraud/slicer_currency: it opens with a choice of fraud_daily.channel, not of its own",
    ),
    "a relationship that is not active": (
        replace(f"{MODEL}/relationships.tmdl", "fromColumn: fraud_daily", "isActive: false\n\tfromColumn: fraud_daily"),
        "predicted_fraud/line_by_day: it mixes dates and fraud_daily, which have no relationship",
    ),
    "a well that the visual does not have": (
        replace(CHART, '"Category": {', '"Axis": {'),
        "pattern_analysis/bar_country: clusteredBarChart is not known",
    ),
    "a visual beside its page": (replace(CHART, '"x": 20', '"x": 1000'), "pattern_analysis/bar_country: it does not lie on its page"),
    "a visual's other name": (
        replace(CHART, '"name": "bar_country"', '"name": "bar_land"'),
        "its name is bar_land, its folder's bar_country",
    ),
    "a visual without its projections": (
        replace(CHART, '"projections"', '"fields"'),
        "pattern_analysis/bar_country is not as Power BI writes it",
    ),
    "a query reference of another field": (
        replace(CHART, "fraud_hourly.country", "fraud_hourly.channel"),
        "queryRef fraud_hourly.channel is another field's",
    ),
    "a filter of an unknown kind": (
        replace(f"{PAGES}/raw_data/page.json", '"And": {', '"Contains": {'),
        "a filter is of the kind Contains, which etl/powerbi.py cannot turn into SQL",
    ),
    "a page that is gone": (remove(f"{PAGES}/data_quality"), "pages.json tells of data_quality, feature_insight"),
    "a page that is not in the order": (
        replace(f"{PAGES}/pages.json", '"data_quality"', '"raw_data"'),
        "pages.json tells of feature_insight",
    ),
    "a page to begin with that is not there": (
        replace(f"{PAGES}/pages.json", '"activePageName": "predicted_fraud"', '"activePageName": "start"'),
        "there is no page start to begin with",
    ),
    "broken JSON": (
        replace(
            CHART,
            "{",
            "",
        ),
        "bar_country/visual.json cannot be read",
    ),
    "a file of another kind": (
        replace(CHART, "definition/visualContainer/", "definition/page/"),
        "its $schema is not one of item/report/definition/visualContainer",
    ),
    "a page without its size": (replace(f"{PAGES}/raw_data/page.json", '"width"', '"breadth"'), "page.json: width is missing"),
    "no report to open": (
        replace("card_fraud.pbip", "card_fraud.Report", "fraud.Report"),
        "card_fraud.pbip: there is no report fraud.Report",
    ),
    "no model of the report": (
        replace("card_fraud.Report/definition.pbir", "../card_fraud.SemanticModel", "../fraud"),
        "there is no semantic model '../fraud'",
    ),
    "no model at all": (remove(MODEL), "there is no TMDL in"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    project = tmp_path / "powerbi"
    shutil.copytree(PROJECT, project)
    damage(project)
    assert [one for one in problems(project) if sentence in one], problems(project)


def test_tmdl_is_read_with_descriptions_quotes_and_expressions_of_several_lines() -> None:
    text = (
        "/// Of each day\n/// and country\ntable 'Bank''s days'\n\tdataCategory: Time\n\n"
        "\tmeasure 'Fraud share' =\n\t\t\tDIVIDE(\n\t\t\t    [a],\n\n\t\t\t    [b])\n\t\tformatString: 0.0%\n\n"
        "\tcolumn day\n\t\tisKey\n\t\tdataType: dateTime\n\n\t\tannotation SummarizationSetBy = User\n"
    )
    (table,) = parse(text, "days.tmdl").all("table")
    assert (table.name, table.description, table.get("dataCategory")) == ("Bank's days", "Of each day and country", "Time")
    (measure,), (column,) = table.all("measure"), table.all("column")
    assert (measure.name, measure.value, measure.get("formatString")) == ("Fraud share", "DIVIDE(\n    [a],\n\n    [b])", "0.0%")
    assert (column.name, column.get("dataType"), len(column.all("isKey"))) == ("day", "dateTime", 1)
    assert [(one.name, one.value) for one in column.all("annotation")] == [("SummarizationSetBy", "User")]


@pytest.mark.parametrize(("text", "line"), [("table a\n\t\tcolumn b", 2), ("table a\n\tcolumn b c = 1", 2), ("1", 1), ("table a b", 1)])
def test_a_line_that_is_no_tmdl_is_named(text: str, line: int) -> None:
    with pytest.raises(PowerBiError, match=rf"a\.tmdl, line {line}, is no TMDL"):
        parse(text, "a.tmdl")


def test_a_visual_with_groups_and_measures_becomes_what_power_query_folds() -> None:
    share = Visual(
        "page",
        "visual",
        (Field("dates", "calendar_month", False), Field("fraud_daily", "Fraud share", True)),
        ((Field("dates", "days_ago", False), "{} <= 6"), (Field("fraud_daily", "channel", False), "{} in ('chip', 'online')")),
        None,
    )
    assert statement(share, read_model()) == (
        "select `_`.`calendar_month`, `_`.`a0`, `_`.`a1` from ("
        "select `rows`.`calendar_month`, sum(`rows`.`frauds`) as `a0`, sum(`rows`.`transactions`) as `a1` from ("
        "select `$Inner`.`calendar_month`, `$Outer`.`frauds`, `$Outer`.`transactions` from ("
        "select `$Table`.`frauds`, `$Table`.`transacted_on`, `$Table`.`transactions` from `mart`.`fraud_daily` as `$Table` "
        "where `$Table`.`channel` in ('chip', 'online')) as `$Outer` inner join ("
        "select `$Table`.`calendar_month`, `$Table`.`dated_on` from `mart`.`dates` as `$Table` where `$Table`.`days_ago` <= 6) as `$Inner` "
        "on `$Outer`.`transacted_on` = `$Inner`.`dated_on`) as `rows` group by `rows`.`calendar_month`) as `_` "
        "where not `_`.`a0` is null or not `_`.`a1` is null limit 1000001"
    )


def test_a_table_of_columns_asks_for_one_screen_in_order() -> None:
    (raw,) = [visual for visual in read_visuals() if visual.name == "table_transactions"]
    assert statement(raw, read_model()).endswith("as `_` order by `_`.`transacted_at` desc limit 501")


def test_a_quote_in_a_filter_stays_a_text(tmp_path: Path) -> None:
    project = tmp_path / "powerbi"
    shutil.copytree(PROJECT, project)
    replace(f"{PAGES}/predicted_fraud/visuals/table_riskiest_transactions/visual.json", "'HIGH'", "'L''OR\\\\'")(project)
    (visual,) = [one for one in read_visuals(project) if one.name == "table_riskiest_transactions"]
    assert (Field("scored_transactions", "risk_level", False), r"{} in ('L\'OR\\')") in visual.filters


def test_a_pages_filter_of_days_reaches_only_what_has_days() -> None:
    statements = {visual.name: statement(visual, read_model()) for visual in read_visuals() if visual.page == "predicted_fraud"}
    assert "days_ago" in statements["card_transaction_count"]
    assert "days_ago" not in statements["table_riskiest_terminals"]
