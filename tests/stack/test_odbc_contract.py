"""What Hive ODBC drivers of Simba's make and Power BI's DirectQuery send over Thrift is answered by the readers server.

The small bank below goes the whole way: core, dbt, the readers server. Drivers and Power BI run on Windows; this is their traffic.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from pyhive import hive
from TCLIService import ttypes

from etl import sql_server
from etl.powerbi import read_model, read_visuals, statement
from etl.powerbi_check import marts as declared_marts
from etl.powerbi_check import source_problems
from etl.settings import settings
from etl.sql_server import Session
from ml import alerts, marts, score

JAVASCRIPT_SAFE = 2**53 - 1
"""The largest whole number that every one below has a double of its own for: what Power BI's visuals can show."""
GOING_ON = (ttypes.TOperationState.INITIALIZED_STATE, ttypes.TOperationState.PENDING_STATE, ttypes.TOperationState.RUNNING_STATE)
CORE = ("core.transactions", "core.customers", "core.terminals", "core.fraud_reports")
BANK = (
    "CREATE TABLE core.customers (customer_id bigint, country string) USING iceberg",
    "INSERT INTO core.customers VALUES (1, 'FR'), (2, 'DE')",
    "CREATE TABLE core.terminals (terminal_id bigint, terminal_name string, country string, category string) USING iceberg",
    "INSERT INTO core.terminals VALUES (10, 'Épicerie', 'FR', 'grocery'), (11, 'Reisen', 'DE', 'travel')",
    "CREATE TABLE core.transactions (transaction_id bigint, customer_id bigint, terminal_id bigint, transacted_at timestamp, "
    "amount decimal(12,2), currency string, channel string, device string, lane string) USING iceberg",
    "INSERT INTO core.transactions VALUES "
    "(1, 1, 10, timestamp '2026-03-01 10:00:00.000001', 10.10, 'EUR', 'chip', 'card', 'batch'), "
    "(2, 1, 11, timestamp '2026-03-01 23:59:59.999999', 20.20, 'EUR', 'online', 'ios', 'stream'), "
    "(3, 2, 11, timestamp '2026-03-02 00:00:00', 0.01, 'EUR', 'online', 'android', 'batch'), "
    f"({JAVASCRIPT_SAFE}, 2, 10, timestamp '2026-03-02 12:30:00', 9999999999.99, 'EUR', 'phone', NULL, 'batch')",
    "CREATE TABLE core.fraud_reports (transaction_id bigint, reported_at timestamp, is_fraud boolean, scenario int) USING iceberg",
    "INSERT INTO core.fraud_reports VALUES (2, timestamp '2026-03-02 08:00:00', true, 3), "
    "(3, timestamp '2026-03-02 09:00:00', false, NULL)",
    "INSERT INTO mart.predictions SELECT t.transaction_id, t.customer_id, t.terminal_id, t.transacted_at, t.amount, 'card_fraud', 1, "
    "p.probability, p.probability >= 0.5, if(p.probability >= 0.5, 'HIGH', 'LOW'), "
    "if(p.probability >= 0.5, array(named_struct('feature', 'amount', 'contribution', p.probability)), array()), "
    "named_struct('amount', cast(t.amount AS double)), t.transacted_at FROM core.transactions AS t "
    f"JOIN VALUES (1, 0.125D), (2, 0.875D), ({JAVASCRIPT_SAFE}, 0.5D) AS p(transaction_id, probability) USING (transaction_id)",
)


@pytest.fixture(scope="module", autouse=True)
def bank(stack: None) -> Iterator[None]:
    """Build the marts from a bank of four transactions."""
    owned = (*CORE, score.TABLE, alerts.TABLE)
    with sql_server.session() as loads:
        for table in owned:
            loads.run(f"DROP TABLE IF EXISTS {table}")
        score.ensure_table(loads, ("amount",))
        alerts.ensure_table(loads)
        for statement in BANK:
            loads.run(statement)
    marts.build(full=False)
    yield
    with sql_server.session() as loads:
        for table in (*owned, *(f"mart.{name}" for name in declared_marts())):
            loads.run(f"DROP TABLE IF EXISTS {table}")


@pytest.fixture
def readers() -> Iterator[Session]:
    with sql_server.session("readers", user="reader") as session:
        yield session


class Driver:
    """One session as a driver has it, by calls of TCLIService."""

    def __init__(self) -> None:
        self._connection = hive.connect(host=settings().readers_host, port=settings().port("readers"), username="reader")
        self.client, self.session = self._connection.client, self._connection.sessionHandle

    def close(self) -> None:
        self._connection.close()

    def metadata(self, call: str, *arguments: object) -> list[dict[str, Any]]:
        """Make a metadata call; returns its rows."""
        request = getattr(ttypes, f"T{call}Req")(self.session, *arguments)
        answer = getattr(self.client, call)(request)
        assert answer.status.statusCode in (ttypes.TStatusCode.SUCCESS_STATUS, ttypes.TStatusCode.SUCCESS_WITH_INFO_STATUS), answer.status
        return self.rows(answer.operationHandle)

    def execute(self, text: str) -> ttypes.TOperationHandle:
        """Start a statement as drivers do, asynchronously."""
        answer = self.client.ExecuteStatement(ttypes.TExecuteStatementReq(self.session, text, runAsync=True))
        assert answer.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS, answer.status
        return answer.operationHandle

    def wait(self, operation: ttypes.TOperationHandle) -> ttypes.TGetOperationStatusResp:
        """Poll until the statement is at an end."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            status = self.client.GetOperationStatus(ttypes.TGetOperationStatusReq(operation))
            if status.operationState not in GOING_ON:
                return status
            time.sleep(0.05)
        raise AssertionError("the statement did not end")

    def columns(self, operation: ttypes.TOperationHandle) -> list[ttypes.TColumnDesc]:
        """Return the columns of a result."""
        return self.client.GetResultSetMetadata(ttypes.TGetResultSetMetadataReq(operation)).schema.columns

    def fetch(self, operation: ttypes.TOperationHandle, most: int = 10_000) -> list[list[object]]:
        """Fetch once, in columns."""
        answer = self.client.FetchResults(ttypes.TFetchResultsReq(operation, ttypes.TFetchOrientation.FETCH_NEXT, most))
        assert answer.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS, answer.status
        return [values(column) for column in answer.results.columns]

    def rows(self, operation: ttypes.TOperationHandle) -> list[dict[str, Any]]:
        """Fetch everything and close the operation."""
        names = [column.columnName for column in self.columns(operation)]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*self.fetch(operation), strict=True)]
        assert self.client.CloseOperation(ttypes.TCloseOperationReq(operation)).status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS
        return rows

    def run(self, text: str) -> list[tuple[Any, ...]]:
        """Run a statement from start to end."""
        operation = self.execute(text)
        status = self.wait(operation)
        assert status.operationState == ttypes.TOperationState.FINISHED_STATE, status.errorMessage
        return [tuple(row.values()) for row in self.rows(operation)]


def values(column: ttypes.TColumn) -> list[object]:
    """Return a column's values; a set bit of `nulls` is an empty one."""
    (held,) = (value for value in vars(column).values() if value is not None)
    nulls = bytes(held.nulls)
    return [None if at // 8 < len(nulls) and nulls[at // 8] >> at % 8 & 1 else value for at, value in enumerate(held.values)]


@pytest.fixture
def driver() -> Iterator[Driver]:
    one = Driver()
    yield one
    one.close()


# Metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [5, 6, 7, 9])
def test_a_session_opens_with_the_protocol_that_the_driver_asks_for(driver: Driver, asked: int) -> None:
    answer = driver.client.OpenSession(ttypes.TOpenSessionReq(client_protocol=asked, username="reader"))
    assert answer.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS
    # From version 6 on results come in columns.
    assert answer.serverProtocolVersion == asked
    driver.client.CloseSession(ttypes.TCloseSessionReq(answer.sessionHandle))


def test_the_server_tells_its_name_and_version(driver: Driver) -> None:
    asked = (ttypes.TGetInfoType.CLI_SERVER_NAME, ttypes.TGetInfoType.CLI_DBMS_NAME, ttypes.TGetInfoType.CLI_DBMS_VER)
    told = [driver.client.GetInfo(ttypes.TGetInfoReq(driver.session, kind)).infoValue.stringValue for kind in asked]
    assert told == ["Spark SQL", "Spark SQL", "4.1.3"]


FIRST_CALLS: dict[str, Callable[[Driver], list[dict[str, Any]]]] = {
    "GetCatalogs": lambda driver: driver.metadata("GetCatalogs"),
    "GetSchemas": lambda driver: driver.metadata("GetSchemas", None, "%"),
    "GetTables": lambda driver: driver.metadata("GetTables", None, "mart", "%", ["TABLE", "VIEW"]),
    "GetTableTypes": lambda driver: driver.metadata("GetTableTypes"),
    "GetColumns": lambda driver: driver.metadata("GetColumns", None, "mart", "fraud_daily", "%"),
    "GetTypeInfo": lambda driver: driver.metadata("GetTypeInfo"),
    "GetFunctions": lambda driver: driver.metadata("GetFunctions", None, None, "sum"),
}


@pytest.mark.parametrize("call", FIRST_CALLS)
def test_any_metadata_call_may_be_a_sessions_first(driver: Driver, call: str) -> None:
    rows = FIRST_CALLS[call](driver)
    # Spark tells of no catalogs: drivers show databases without one above them.
    assert bool(rows) == (call != "GetCatalogs")


def test_databases_and_tables_are_found_by_pattern(driver: Driver) -> None:
    schemas = {row["TABLE_SCHEM"] for row in driver.metadata("GetSchemas", None, "%")}
    assert {"core", "mart", "ops"} <= schemas
    assert [row["TABLE_SCHEM"] for row in driver.metadata("GetSchemas", "", "mar_")] == ["mart"]
    tables = driver.metadata("GetTables", None, "mart", "fraud%", ["TABLE", "EXTERNAL_TABLE", "VIEW"])
    assert sorted((row["TABLE_NAME"], row["TABLE_TYPE"]) for row in tables) == [("fraud_daily", "TABLE"), ("fraud_hourly", "TABLE")]
    assert sorted(row["TABLE_TYPE"] for row in driver.metadata("GetTableTypes")) == ["TABLE", "VIEW"]


def test_columns_have_the_types_that_power_bi_needs(driver: Driver) -> None:
    rows = {row["COLUMN_NAME"]: row for row in driver.metadata("GetColumns", None, "mart", "scored_transactions", "%")}
    # By the numbers of ODBC: BIGINT -5, DATE 91, TIMESTAMP 93, DECIMAL 3, VARCHAR 12, BOOLEAN 16, INTEGER 4, DOUBLE 8.
    assert {
        name: (rows[name]["DATA_TYPE"], rows[name]["DECIMAL_DIGITS"])
        for name in (
            "transaction_id",
            "transacted_on",
            "transacted_at",
            "amount",
            "channel",
            "is_fraud",
            "model_version",
            "fraud_probability",
        )
    } == {
        "transaction_id": (-5, None),
        "transacted_on": (91, None),
        "transacted_at": (93, 6),
        "amount": (3, 2),
        "channel": (12, None),
        "is_fraud": (16, 0),
        "model_version": (4, 0),
        "fraud_probability": (8, 15),
    }
    assert rows["amount"]["TYPE_NAME"] == "DECIMAL(12,2)"
    assert [row["ORDINAL_POSITION"] for row in rows.values()] == list(range(1, len(rows) + 1))
    assert rows["transacted_on"]["REMARKS"] == "Day of the transaction (UTC)"


def test_every_table_and_column_of_the_model_is_in_hive_with_its_type(driver: Driver, readers: Session) -> None:
    model = read_model()
    described = {name: described_columns(readers, name) for name in model.tables}
    assert list(source_problems(model, described)) == []
    listed: dict[str, dict[str, str]] = {name: {} for name in model.tables}
    for row in driver.metadata("GetColumns", None, "mart", "%", "%"):
        if row["TABLE_NAME"] in listed:
            listed[row["TABLE_NAME"]][row["COLUMN_NAME"]] = row["TYPE_NAME"].lower()
    assert listed == described


def described_columns(readers: Session, name: str) -> dict[str, str]:
    rows = [(column, kind) for column, kind, _ in readers.run(f"DESCRIBE mart.{name}")]
    # Below a partitioned table's columns stands what it is partitioned by.
    end = next((at for at, (column, _) in enumerate(rows) if not column or column.startswith("#")), len(rows))
    return dict(rows[:end])


def test_types_of_the_server_hold_those_of_the_marts(driver: Driver) -> None:
    known = {row["TYPE_NAME"]: row["DATA_TYPE"] for row in driver.metadata("GetTypeInfo")}
    needed = {"BIGINT": -5, "INT": 4, "DATE": 91, "TIMESTAMP": 93, "DECIMAL": 3, "STRING": 12, "BOOLEAN": 16, "DOUBLE": 8}
    assert needed.items() <= known.items()


# Statements ------------------------------------------------------------------------------------------------------


def test_a_statement_runs_asynchronously_and_its_result_comes_in_columns_with_types(driver: Driver) -> None:
    operation = driver.execute(
        "select transaction_id, transacted_on, transacted_at, amount, channel, is_fraud, scenario, fraud_probability "
        "from mart.scored_transactions order by transaction_id"
    )
    assert driver.wait(operation).operationState == ttypes.TOperationState.FINISHED_STATE
    types = [column.typeDesc.types[0].primitiveEntry for column in driver.columns(operation)]
    assert [ttypes.TTypeId._VALUES_TO_NAMES[one.type] for one in types] == [
        "BIGINT_TYPE",
        "DATE_TYPE",
        "TIMESTAMP_TYPE",
        "DECIMAL_TYPE",
        "STRING_TYPE",
        "BOOLEAN_TYPE",
        "INT_TYPE",
        "DOUBLE_TYPE",
    ]
    decimal = types[3].typeQualifiers.qualifiers
    assert (decimal["precision"].i32Value, decimal["scale"].i32Value) == (12, 2)
    assert driver.fetch(operation, 3) == [
        [1, 2, 3],
        ["2026-03-01", "2026-03-01", "2026-03-02"],
        ["2026-03-01 10:00:00.000001", "2026-03-01 23:59:59.999999", "2026-03-02 00:00:00"],
        ["10.10", "20.20", "0.01"],
        ["chip", "online", "online"],
        [None, True, False],
        [None, 3, None],
        [0.125, 0.875, None],
    ]
    rest = driver.fetch(operation)
    assert [column[0] for column in rest][:4] == [JAVASCRIPT_SAFE, "2026-03-02", "2026-03-02 12:30:00", "9999999999.99"]
    assert driver.fetch(operation) == [[]] * 8
    assert driver.client.CloseOperation(ttypes.TCloseOperationReq(operation)).status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS


def test_keys_are_whole_numbers_that_a_visual_can_show(readers: Session) -> None:
    ((largest,),) = readers.run("SELECT greatest(max(transaction_id), max(customer_id), max(terminal_id)) FROM mart.scored_transactions")
    assert largest == JAVASCRIPT_SAFE == int(float(largest))
    # The next number but one has no double of its own.
    assert int(float(largest + 2)) != largest + 2


def test_a_statement_that_is_cancelled_ends(driver: Driver) -> None:
    operation = driver.execute("select count(*) from range(1000000000000) as a where id % 7 = 8")
    time.sleep(0.5)
    assert driver.client.CancelOperation(ttypes.TCancelOperationReq(operation)).status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS
    assert driver.wait(operation).operationState == ttypes.TOperationState.CANCELED_STATE
    driver.client.CloseOperation(ttypes.TCloseOperationReq(operation))
    assert driver.run("select 1") == [(1,)]


def test_a_statement_of_an_unknown_column_fails_with_its_name(driver: Driver) -> None:
    status = driver.wait(driver.execute("select `_`.`crimes` from `mart`.`fraud_daily` as `_`"))
    assert status.operationState == ttypes.TOperationState.ERROR_STATE
    assert "crimes" in status.errorMessage


# What DirectQuery folds ------------------------------------------------------------------------------------------

FOLDED = {
    "rows of a preview": (
        "select `$Table`.`transaction_id`, `$Table`.`amount` from `mart`.`scored_transactions` as `$Table` limit 1000",
        "select transaction_id, amount from mart.scored_transactions",
    ),
    "a top of a table": (
        "select `_`.`transaction_id`, `_`.`amount` from (select `rows`.`transaction_id`, `rows`.`amount` from "
        "(select `$Table`.`transaction_id`, `$Table`.`amount` from `mart`.`scored_transactions` as `$Table`) as `rows` "
        "group by `rows`.`transaction_id`, `rows`.`amount`) as `_` order by `_`.`amount` desc, `_`.`transaction_id` asc limit 501",
        "select transaction_id, amount from mart.scored_transactions order by amount desc, transaction_id",
    ),
    "groups with a filter of dates": (
        "select `rows`.`channel` as `channel`, sum(`rows`.`amount`) as `a0`, count(distinct `rows`.`device`) as `a1` from "
        "(select `channel`, `device`, `amount` from `mart`.`scored_transactions` as `$Table` where `$Table`.`transacted_on` >= "
        "cast('2026-03-02' as date) and `$Table`.`transacted_on` < date '2026-03-03') as `rows` group by `channel` limit 1000001",
        "select channel, sum(amount), count(distinct device) from mart.scored_transactions "
        "where transacted_at >= timestamp '2026-03-02' group by channel",
    ),
    "a filter of moments": (
        "select count(1) as `a0` from `mart`.`scored_transactions` as `$Table` "
        "where `$Table`.`transacted_at` > timestamp '2026-03-01 10:00:00.000001' "
        "and `$Table`.`transacted_at` <= cast('2026-03-02 00:00:00' as timestamp)",
        "select 2",
    ),
    "a list of a slicer": (
        "select sum(`rows`.`transactions`) as `a0` from `mart`.`fraud_daily` as `rows` where (`rows`.`channel` in ('chip', 'phone') "
        "and `rows`.`channel` is not null) and `rows`.`country` = 'FR'",
        "select count(*) from mart.scored_transactions where country = 'FR' and channel != 'online'",
    ),
    "empty and false are told apart": (
        "select `rows`.`is_fraud` as `is_fraud`, count(1) as `a0` from `mart`.`scored_transactions` as `rows` "
        "group by `rows`.`is_fraud` order by `is_fraud` asc nulls first",
        "select * from values (cast(null as boolean), 2L), (false, 1L), (true, 1L)",
    ),
    "a join with the dates": (
        "select `_`.`weekday_name`, `_`.`a0` from (select `rows`.`weekday_name`, sum(`rows`.`frauds`) as `a0` from (select "
        "`$Inner`.`weekday_name`, `$Outer`.`frauds` from `mart`.`fraud_daily` as `$Outer` left outer join `mart`.`dates` as `$Inner` "
        "on (`$Outer`.`transacted_on` = `$Inner`.`dated_on`)) as `rows` group by `weekday_name`) as `_` "
        "where not `_`.`a0` is null limit 1000001",
        "select * from values ('Sunday', 1L), ('Monday', 0L)",
    ),
    "a case and a conversion": (
        "select sum(case when `rows`.`is_predicted_fraud` = true then cast(`rows`.`amount` as decimal(19, 4)) else 0 end) as `a0`, "
        "sum(cast(`rows`.`fraud_probability` as double)) as `a1` from `mart`.`scored_transactions` as `rows`",
        "select cast(10000000020.19 as decimal(38, 4)), 1.5D",
    ),
    "texts like another": (
        "select `terminal_name` from `mart`.`terminal_risk` as `rows` where `rows`.`terminal_name` like 'Épic%' limit 501",
        "select 'Épicerie'",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_statement_gives_the_numbers_of_the_plain_one(driver: Driver, readers: Session, name: str) -> None:
    folded, plain = FOLDED[name]
    expected = [tuple(str(value) if isinstance(value, Decimal) else value for value in row) for row in readers.run(plain)]
    assert sorted(driver.run(folded), key=repr) == sorted(expected, key=repr)


def test_every_visual_is_answered(readers: Session) -> None:
    model = read_model()
    empty = [f"{visual.page}/{visual.name}" for visual in read_visuals() if not readers.run(statement(visual, model))]
    # No label's seven days have passed, and no verb has loaded anything.
    assert [name for name in empty if not name.startswith(("model_performance/", "data_quality/"))] == []


SHOWN = {
    "predicted_fraud/line_by_day": {("2026-03-01", 1, 1), ("2026-03-02", 0, 1)},
    "predicted_fraud/card_share_of_money_caught": {(1, Decimal("20.20"), Decimal("20.20"))},
    "pattern_analysis/bar_channel": {("chip", 0, 1), ("online", 1, 2), ("phone", 0, 1)},
    "pattern_analysis/column_hour": {(0, 0, 1), (10, 0, 1), (12, 0, 1), (23, 1, 1)},
    "pattern_analysis/matrix_weekday_channel": {
        ("Sunday", "chip", 0),
        ("Sunday", "online", 1),
        ("Monday", "online", 0),
        ("Monday", "phone", 0),
    },
    "feature_insight/table_features": {("amount", 2, 2, 1.375)},
    "raw_data/card_transactions_listed": {(4,)},
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_visual_shows_the_banks_numbers(readers: Session, name: str) -> None:
    (visual,) = [one for one in read_visuals() if f"{one.page}/{one.name}" == name]
    assert set(readers.run(statement(visual, read_model()))) == SHOWN[name]


def test_the_date_table_has_every_day_of_the_year_once_and_knows_now(readers: Session) -> None:
    days = readers.run("SELECT dated_on, weekday, is_weekend, days_ago FROM mart.dates WHERE calendar_year = 2026 ORDER BY dated_on")
    assert [row[0] for row in days] == [str(dt.date(2026, 1, 1) + dt.timedelta(days=at)) for at in range(365)]
    assert [row for row in days if row[3] in (0, 1)] == [("2026-03-01", 7, True, 1), ("2026-03-02", 1, False, 0)]


@pytest.mark.parametrize(("largest", "found"), [(JAVASCRIPT_SAFE, []), (JAVASCRIPT_SAFE + 1, [(JAVASCRIPT_SAFE + 1,)])])
def test_a_key_that_a_visual_would_round_is_warned_of(readers: Session, largest: int, found: list[tuple[int]]) -> None:
    check = (marts.PROJECT / "tests" / "keys_fit_visuals.sql").read_text().replace("{{ config(severity='warn') }}\n", "")
    rows = f"VALUES ({largest}L, 1L, 2L), (3L, 4L, 5L) AS t(transaction_id, customer_id, terminal_id)"
    assert readers.run(check.replace("{{ ref('scored_transactions') }}", rows)) == found
