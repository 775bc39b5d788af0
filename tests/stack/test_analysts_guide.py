"""Every query of docs/analysts.md, run on the readers server over a small bank that has a row for each of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from etl import ops, sql_server
from etl.settings import ROOT, settings
from etl.stack import jars, machine
from ml.records import copy_records
from tests.readers import environment

GUIDE = ROOT / "docs" / "analysts.md"
EXAMPLE = "4242424242424242424"
"""Number of a snapshot, as the guide has it; the tests' own takes its place."""
COLUMNS = {
    "customers": "customer_id bigint, country string, updated_at timestamp",
    "terminals": "terminal_id bigint, terminal_name string, country string, category string, updated_at timestamp",
    "transactions": "transaction_id bigint, customer_id bigint, terminal_id bigint, transacted_at timestamp, amount decimal(12,2), "
    "currency string, channel string, device string, updated_at timestamp, lane string",
    "fraud_reports": "transaction_id bigint, reported_at timestamp, is_fraud boolean, scenario int, updated_at timestamp",
}
NOW = "TIMESTAMP '2026-02-01 00:00:00'"
# Twenty-four transactions of two customers, one an hour, at terminals of two countries; the last two within a minute, and stolen.
ROWS = (
    f"INSERT INTO core.customers VALUES (1, 'DE', {NOW}), (2, 'FR', {NOW})",
    f"INSERT INTO core.terminals VALUES (1, 'Corner', 'DE', 'grocery', {NOW}), (2, 'Far away', 'US', 'travel', {NOW})",
    "INSERT INTO core.transactions SELECT id, 1 + id % 2, 1, TIMESTAMP '2026-01-01 00:00:00' + make_dt_interval(0, id), "
    f"CAST(10 AS decimal(12,2)), 'EUR', 'chip', 'card', {NOW}, 'batch' FROM range(22)",
    "INSERT INTO core.transactions VALUES "
    f"(22, 1, 1, TIMESTAMP '2026-01-03 02:00:00', 9.00, 'EUR', 'online', NULL, {NOW}, 'batch'), "
    f"(23, 1, 2, TIMESTAMP '2026-01-03 02:01:00', 900.00, 'EUR', 'online', NULL, {NOW}, 'batch')",
    f"INSERT INTO core.fraud_reports VALUES (22, TIMESTAMP '2026-01-10 02:00:00', true, 2, {NOW}), "
    f"(23, TIMESTAMP '2026-01-10 02:00:00', true, 1, {NOW}), (3, TIMESTAMP '2026-01-10 02:00:00', false, NULL, {NOW})",
    "INSERT INTO mart.predictions SELECT transaction_id, customer_id, terminal_id, transacted_at, amount, 'card_fraud', 1, "
    "CAST(if(amount > 500, 0.97, 0.02) AS double), amount > 500, if(amount > 500, 'HIGH', 'LOW'), "
    "if(amount > 500, array(named_struct('feature', 'amount', 'contribution', CAST(0.4 AS double))), array()), "
    f"named_struct('amount', CAST(amount AS double)), {NOW} FROM core.transactions",
    "INSERT INTO mart.alerts SELECT t.transaction_id, t.customer_id, t.terminal_id, t.transacted_at, t.amount, t.currency, t.channel, "
    "t.device, p.fraud_probability, p.risk_level, p.model_name, p.model_version, p.reasons, p.scored_at, 'batch' "
    "FROM core.transactions AS t INNER JOIN mart.predictions AS p ON t.transaction_id = p.transaction_id WHERE p.risk_level = 'HIGH'",
    "ALTER TABLE core.transactions CREATE TAG merged",
    f"INSERT INTO core.transactions VALUES (24, 2, 2, TIMESTAMP '2026-01-04 02:00:00', 5.00, 'USD', 'chip', 'card', {NOW}, 'batch')",
)


QUERIES = [statement.strip() for statement in re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)]


@pytest.fixture(scope="module", autouse=True)
def snapshot(stack: None) -> Iterator[int]:
    """Make the small bank; give the snapshot of its transactions before the last of them."""
    tables = [*(f"core.{name}" for name in COLUMNS), "mart.predictions", "mart.alerts"]
    location = f"{settings().hdfs_uri}{settings().warehouse_path}"
    with sql_server.session() as hive:
        for table in tables:
            hive.run(f"DROP TABLE IF EXISTS {table}")
        for name, columns in COLUMNS.items():
            hive.run(f"CREATE TABLE core.{name} ({columns}) USING iceberg")
        features = [{"name": "amount", "type": "double", "description": "Amount."}]
        hive.run_file("hive/mart/predictions/create.hql", location=f"{location}/mart/predictions", features=features)
        hive.run_file("hive/mart/alerts/create.hql", location=f"{location}/mart/alerts")
        for statement in ROWS:
            hive.run(statement)
        with ops.run("test") as run:
            run.reject([ops.Reject("terminals", "terminals.csv", "country is not two capital letters", 7, "3", "country", "3,Here,be")])
            copy_records(hive, run)
        ((number,),) = hive.run("SELECT snapshot_id FROM core.transactions.refs WHERE name = 'merged'")
        yield number
        for table in tables:
            hive.run(f"DROP TABLE IF EXISTS {table}")


def test_the_guide_has_ten_questions_and_more() -> None:
    assert len(re.findall(r"^\d+\. ", GUIDE.read_text(), re.MULTILINE)) == 10
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.split("\n")[0][:20] + "-" + str(QUERIES.index(query)))
def test_a_query_of_the_guide_answers(query: str, snapshot: int) -> None:
    with sql_server.session("readers") as readers:
        answer = readers.run(query.replace(EXAMPLE, str(snapshot)))
    # What makes or drops a table of the sandbox answers nothing; the one between them reads it.
    assert bool(answer) is not query.startswith(("CREATE TABLE", "DROP TABLE"))


@pytest.mark.parametrize("query", [query for query in QUERIES if re.search(r"(sum|avg)\((\w+\.)?amount\)", query)])
def test_amounts_of_different_currencies_are_not_added(query: str) -> None:
    assert re.search(r"GROUP BY .*\bcurrency\b", query)


def told(*command: str | Path) -> str:
    ran = subprocess.run(
        command,
        env={**environment(), "JAVA_HOME": str(machine.java_home()), "SPARK_HOME": str(jars.SPARK_HOME), "USER": "reader"},
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_bash_query_answers_from_a_file_as_csv_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "question.sql").write_text("-- of my own\nselect count(*) as n from core.transactions;\n")
    query = ROOT / "bash" / "query.sh"
    assert told(query, "-f", tmp_path / "question.sql", "--format", "csv").split() == ["n", "25"]
    assert told(query, "-f", tmp_path / "question.sql", "--format", "json") == '{"n": 25}\n'


def test_beeline_answers() -> None:
    command = re.search(r"^    beeline (-u jdbc\S+) -n \$USER -e \"(.+)\"$", GUIDE.read_text(), re.MULTILINE)
    assert command is not None
    url = command[1].split()[1].replace("10000", str(settings().port("readers")))
    ran = told(jars.SPARK_HOME / "bin" / "beeline", "-u", url, "-n", "reader", "--outputformat=csv2", "--silent=true", "-e", command[2])
    assert "count(1)\n25\n" in ran


def test_sqlalchemy_answers(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(code.replace("10000", str(settings().port("readers"))), {"sqlalchemy": sqlalchemy})
    assert capsys.readouterr().out == "25\n"
