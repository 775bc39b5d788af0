"""The simulated bank, and files of the Fraud Detection Handbook's form."""

from __future__ import annotations

import csv
import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from etl import handbook_file, simulator
from etl.errors import RefusedError
from etl.handbook_file import InputError
from etl.load_csv import load_files
from etl.settings import ROOT
from etl.simulator import Simulation, customer_details, terminal_details, transaction_details
from tests.postgres import rows

SMALL = Simulation(seed=5, days=45, customers=400, terminals=800, incremental_days=5, stream_days=2, radius=8)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


def all_transactions(of: Simulation) -> simulator.Transactions:
    pieces = [piece for _, piece in simulator.transactions(of)]
    return simulator.Transactions(
        **{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in simulator.Transactions.__dataclass_fields__}
    )


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- Reproducible ----------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_files_whatever_the_size_of_the_pieces(tmp_path: Path) -> None:
    for name, days_at_once in (("a", None), ("b", 1), ("c", 7)):
        simulator.write(SMALL, tmp_path / name, days_at_once=days_at_once)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_another_process_gives_the_same_names() -> None:
    program = (
        "import numpy, hashlib; from etl import simulator as s; ids = numpy.arange(3000);"
        "print(hashlib.sha256(repr((s.customer_details(ids).to_pylist(), s.terminal_details(ids).to_pylist())).encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_another_seed_gives_other_transactions() -> None:
    one, other = (all_transactions(Simulation(seed=seed, days=5, customers=100, terminals=500, incremental_days=0)) for seed in (1, 2))
    assert not np.isin(one.transacted_at, other.transacted_at).any()


def test_details_depend_on_the_id_alone() -> None:
    ids = np.arange(50)
    some = np.array([41, 3])
    for details in (customer_details, terminal_details):
        assert details(some).to_pylist() == [details(ids).to_pylist()[place] for place in some]
    together = transaction_details(ids, ids % 7, ids % 5).to_pylist()
    assert transaction_details(some, some % 7, some % 5).to_pylist() == [together[place] for place in some]
    assert customer_details(ids, seed=1) != customer_details(ids)


def test_details_are_what_the_source_takes(bank: None, tmp_path: Path) -> None:
    ids = np.arange(20_000)
    simulator.write_csv(customer_details(ids), tmp_path / "customers.csv")
    simulator.write_csv(terminal_details(ids), tmp_path / "terminals.csv")
    simulator.write_csv(simulator.transaction_rows(ids, ids, ids, ids, ids), tmp_path / "transactions.csv")
    assert [loaded.rejected for loaded in load_files(list(tmp_path.iterdir()), "full")] == [0, 0, 0]
    assert rows("SELECT count(DISTINCT email) > 19999, count(DISTINCT country), max(length(customer_name)) < 60 FROM bank.customers") == [
        (True, len(simulator.COUNTRIES), True)
    ]
    assert rows("SELECT count(DISTINCT category), count(DISTINCT country) FROM bank.terminals") == [
        (len(simulator.CATEGORIES), len(simulator.COUNTRIES))
    ]
    assert rows("SELECT DISTINCT channel FROM bank.transactions WHERE device IS NULL") == [("phone",)]
    assert {row[0] for row in rows("SELECT DISTINCT channel FROM bank.transactions")} == set(simulator.CHANNELS)
    assert {row[0] for row in rows("SELECT DISTINCT device FROM bank.transactions")} == {*simulator.DEVICES, None}


# --- The Handbook's model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_year() -> tuple[Simulation, simulator.Transactions]:
    of = Simulation(customers=2500, terminals=5000, days=120, incremental_days=0, stream_days=0)
    return of, all_transactions(of)


def test_ids_follow_time(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    _, made = half_year
    assert (np.diff(made.transaction_id) == 1).all()
    assert (np.diff(made.transacted_at) >= 0).all()


def test_number_amounts_and_times_are_the_handbooks(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    of, made = half_year
    genuine = made.amount[made.scenario == 0] / 100
    per_day = len(made.amount) / of.days / of.customers
    hours = made.transacted_at % simulator.DAY_MICROSECONDS / 3.6e9
    # Its own file: 1,754,155 transactions of 4,990 customers in 183 days, mean amount 52.9 of genuine ones, three quarters by day.
    assert per_day == pytest.approx(1.92, abs=0.05)
    assert genuine.mean() == pytest.approx(52.9, abs=2)
    assert np.mean((hours > 6) & (hours < 18)) == pytest.approx(0.74, abs=0.02)
    assert made.amount.min() >= 0


def test_frauds_are_as_frequent_as_the_handbooks(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    of, made = half_year
    share = np.bincount(made.scenario, minlength=4) / len(made.scenario)
    # Scenarios 2 and 3 hit a fixed number of victims a day, so their share goes against the number of terminals and customers.
    assert share[1] == pytest.approx(973 / 1_754_155, rel=0.5)
    assert share[2] == pytest.approx(9077 / 1_754_155 * 10_000 / of.terminals, rel=0.25)
    assert share[3] == pytest.approx(4631 / 1_754_155 * 5_000 / of.customers, rel=0.25)


def test_scenario_1_is_every_other_large_amount(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    _, made = half_year
    is_other = (made.scenario == 0) | (made.scenario == 1)
    assert ((made.amount[is_other] > 220_00) == (made.scenario[is_other] == 1)).all()


def test_scenario_2_takes_all_transactions_of_a_terminal_for_28_days(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    of, made = half_year
    day = made.transacted_at // simulator.DAY_MICROSECONDS - of.midnight(0) // simulator.DAY_MICROSECONDS
    compromised = simulator._world(of).is_compromised
    assert (compromised[day, made.terminal_id] == np.isin(made.scenario, (2, 3)))[made.scenario != 3].all()
    assert compromised.sum(axis=0).max() >= 28
    assert (compromised[60].sum(), compromised[0].sum()) == (pytest.approx(56, abs=3), 2)


def test_scenario_3_multiplies_a_third_of_a_customers_amounts_for_14_days(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    of, made = half_year
    day = made.transacted_at // simulator.DAY_MICROSECONDS - of.midnight(0) // simulator.DAY_MICROSECONDS
    leaked = simulator._world(of).is_leaked
    is_leaked = leaked[day, made.customer_id]
    assert is_leaked[made.scenario == 3].all()
    assert np.mean(made.scenario[is_leaked] == 3) == pytest.approx(1 / 3, abs=0.03)
    assert (made.amount[made.scenario == 3] % 5 == 0).all()
    assert (leaked[60].sum(), leaked[0].sum()) == (pytest.approx(42, abs=3), 3)


def test_customers_use_terminals_within_their_radius(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    of, made = half_year
    customers, terminals = np.unique(made.customer_id), np.unique(made.terminal_id)
    x, y = (np.zeros(of.customers) for _ in range(2))
    x[customers], y[customers] = simulator._location("customer", customers, of.seed)
    to_x, to_y = (np.zeros(of.terminals) for _ in range(2))
    to_x[terminals], to_y[terminals] = simulator._location("terminal", terminals, of.seed)
    distance = np.hypot(x[made.customer_id] - to_x[made.terminal_id], y[made.customer_id] - to_y[made.terminal_id])
    assert distance.max() < 5
    assert distance.max() > 4.9


def test_nothing_beyond_the_handbook_tells_of_fraud(half_year: tuple[Simulation, simulator.Transactions]) -> None:
    _, made = half_year
    details = transaction_details(made.transaction_id, made.customer_id, made.terminal_id).to_pandas()
    overall = (made.scenario == 3).mean()
    for column in ("channel", "device"):
        for value, is_fraud in (pa.array(made.scenario == 3).to_pandas()).groupby(details[column].to_numpy()):
            spread = 5 * np.sqrt(overall / len(is_fraud))
            assert is_fraud.mean() == pytest.approx(overall, abs=spread + 0.001), value


# --- Files of a simulation -------------------------------------------------------------------------------------------------


def test_full_load_and_increments_end_in_the_truth(bank: None, tmp_path: Path) -> None:
    written = simulator.write(SMALL, tmp_path)
    assert all(not loaded.rejected for loaded in load_files(sorted((tmp_path / "full").iterdir()), "full"))
    assert rows("SELECT count(*) FROM bank.transactions") == [(written.transactions,)]
    changed = dict.fromkeys(("customers", "transactions"), 0)
    for day in sorted((tmp_path / "incremental").iterdir()):
        for loaded in load_files(sorted(day.iterdir()), "incremental"):
            assert (loaded.rejected, loaded.unchanged) == (0, 0)
            changed[loaded.table] = changed.get(loaded.table, 0) + loaded.updated
    assert min(changed["customers"], changed["transactions"]) > 0
    made = all_transactions(SMALL)
    arrived = (made.arrived_on < SMALL.days) & (made.transacted_at < SMALL.midnight(SMALL.days))
    amount = np.where(made.corrected_on < SMALL.days, made.amount, made.first_amount)
    assert rows("SELECT transaction_id, (amount * 100)::bigint FROM bank.transactions ORDER BY 1") == [
        (int(number), int(cents)) for number, cents in zip(made.transaction_id[arrived], amount[arrived], strict=True)
    ]
    is_known = made.is_reported & (made.reported_at < SMALL.midnight(SMALL.days))
    assert rows("SELECT count(*), count(*) FILTER (WHERE is_fraud), count(scenario) FROM bank.fraud_reports") == [
        (int(is_known.sum()), int((is_known & (made.scenario > 0)).sum()), int((is_known & (made.scenario > 0)).sum()))
    ]
    stream = lines(tmp_path / "stream.csv")
    assert len(stream) == written.stream_transactions
    assert [row["transacted_at"] for row in stream] == sorted(row["transacted_at"] for row in stream)
    assert {row["transacted_at"][:10] for row in stream} == {"2018-05-16", "2018-05-17"}
    assert all(not loaded.rejected for loaded in load_files([tmp_path / "stream.csv"], "incremental"))


def test_an_increment_holds_late_transactions_and_reports_of_its_day(tmp_path: Path) -> None:
    simulator.write(Simulation(seed=5, days=30, customers=800, terminals=1500, incremental_days=2, late_share=0.05), tmp_path)
    increment = tmp_path / "incremental" / "2018-04-30"
    assert {row["transacted_at"][:10] for row in lines(increment / "transactions.csv")} >= {"2018-04-30", "2018-04-29"}
    assert {row["reported_at"][:10] for row in lines(increment / "fraud_reports.csv")} == {"2018-04-30"}


def test_another_folders_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RefusedError, match="would be lost"):
        simulator.write(SMALL, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# --- The Handbook's own file -----------------------------------------------------------------------------------------------

NAMES = (*handbook_file.COLUMNS[:5], "TX_TIME_SECONDS", "TX_TIME_DAYS", *handbook_file.COLUMNS[5:])
ROWS = [
    (0, dt.datetime(2018, 4, 1, 0, 0, 31), 596, 3156, 57.16, 31, 0, 0, 0),
    (1, dt.datetime(2018, 4, 1, 12, 0, 0), 4961, 3412, 221.35, 43200, 0, 1, 1),
    (2, dt.datetime(2018, 4, 6, 8, 30, 0, 250), 596, 3412, 0.29, 462600, 5, 1, 2),
    (3, dt.datetime(2018, 4, 8, 11, 59, 59), 2, 3156, 1.0, 648000, 7, 0, 0),
    (4, dt.datetime(2018, 4, 9, 0, 0, 0), 2, 3156, 5.5, 691200, 8, 0, 0),
]


def handbook(path: Path, rows: list[tuple[object, ...]] = ROWS, **changed: pa.Array) -> Path:
    table = pa.table({name: changed.get(name, [row[place] for row in rows]) for place, name in enumerate(NAMES)})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_handbook_file_becomes_four_files(suffix: str, tmp_path: Path) -> None:
    handbook_file.write(handbook(tmp_path / f"in.{suffix}"), tmp_path / "out")
    full = tmp_path / "out" / "full"
    assert {path.name for path in full.iterdir()} == {"customers.csv", "terminals.csv", "transactions.csv", "fraud_reports.csv"}
    assert [tuple(row.values())[:5] for row in lines(full / "transactions.csv")] == [
        ("0", "596", "3156", "2018-04-01 00:00:31.000000Z", "57.16"),
        ("1", "4961", "3412", "2018-04-01 12:00:00.000000Z", "221.35"),
        ("2", "596", "3412", "2018-04-06 08:30:00.000250Z", "0.29"),
        ("3", "2", "3156", "2018-04-08 11:59:59.000000Z", "1.00"),
        ("4", "2", "3156", "2018-04-09 00:00:00.000000Z", "5.50"),
    ]
    # The report of transaction 2 would come on 13 April, when the file has ended.
    assert [tuple(row.values()) for row in lines(full / "fraud_reports.csv")] == [("1", "2018-04-08 12:00:00.000000Z", "true", "1")]
    assert [row["customer_id"] for row in lines(full / "customers.csv")] == ["2", "596", "4961"]
    assert [row["terminal_id"] for row in lines(full / "terminals.csv")] == ["3156", "3412"]
    (name,) = customer_details(np.array([596]))["customer_name"].to_pylist()
    assert lines(full / "customers.csv")[1]["customer_name"] == name


def test_held_back_days_come_as_increments_and_end_in_the_same(tmp_path: Path) -> None:
    path = handbook(tmp_path / "in.parquet")
    handbook_file.write(path, tmp_path / "whole")
    written = handbook_file.write(path, tmp_path / "parts", hold_back_days=2)
    assert (written.transactions, written.incremental_transactions, written.fraud_reports, written.incremental_reports) == (3, 2, 0, 1)
    parts = tmp_path / "parts" / "incremental"
    assert {str(file.relative_to(parts)) for file in parts.rglob("*.csv")} == {
        "2018-04-08/transactions.csv",
        "2018-04-08/fraud_reports.csv",
        "2018-04-09/transactions.csv",
    }
    for name in ("transactions", "fraud_reports"):
        found = [row for file in sorted((tmp_path / "parts").rglob(f"{name}.csv")) for row in lines(file)]
        assert found == lines(tmp_path / "whole" / "full" / f"{name}.csv")


def test_a_folder_is_read_as_one_file(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        handbook(tmp_path / "in" / f"2018-04-{number:02}.{'csv' if number % 2 else 'parquet'}", [row])
    (tmp_path / "in" / "notes.txt").write_text("not data")
    handbook_file.write(tmp_path / "in", tmp_path / "parts")
    handbook_file.write(handbook(tmp_path / "one.parquet"), tmp_path / "one")
    assert files(tmp_path / "parts") == files(tmp_path / "one")


def test_amounts_keep_their_cents(tmp_path: Path) -> None:
    amounts = [0.01 * cents for cents in range(2000)] + [9_999_999_999.99, 0.0, 1.005]
    many = [(number, ROWS[0][1], 1, 1, amount, 0, 0, 0, 0) for number, amount in enumerate(amounts)]
    handbook_file.write(handbook(tmp_path / "in.parquet", many), tmp_path / "out")
    found = [Decimal(row["amount"]) for row in lines(tmp_path / "out" / "full" / "transactions.csv")]
    assert found == [*(Decimal(cents) / 100 for cents in range(2000)), Decimal("9999999999.99"), Decimal(0), Decimal("1.00")]


def test_a_fraud_of_unknown_kind_is_a_fraud(tmp_path: Path) -> None:
    handbook_file.write(handbook(tmp_path / "in.parquet", TX_FRAUD_SCENARIO=[0] * 5), tmp_path / "out")
    assert [(row["is_fraud"], row["scenario"]) for row in lines(tmp_path / "out" / "full" / "fraud_reports.csv")] == [("true", "")]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"TX_AMOUNT": ["1", "2", "x", "4", "5"]}, "in.parquet: column TX_AMOUNT of type string holds what is not a number"),
        ({"TX_AMOUNT": [1.0, 2.0, float("nan"), 4.0, 5.0]}, "in.parquet: column TX_AMOUNT has 1 values that are negative, not finite"),
        ({"TX_AMOUNT": [1.0, -2.0, 3.0, 4.0, 5.0]}, "such as -2.0; correct or remove"),
        ({"CUSTOMER_ID": ["a", "b", "c", "d", "e"]}, "in.parquet: column CUSTOMER_ID of type string holds what is not a whole number"),
        ({"CUSTOMER_ID": [1.5, 2.0, 3.0, 4.0, 5.0]}, "column CUSTOMER_ID of type double holds what is not a whole number"),
        ({"CUSTOMER_ID": [1, 2, None, 4, 5]}, "column CUSTOMER_ID has 1 empty values"),
        ({"TX_DATETIME": ["2018-04-01", "x", "2018-04-01", "2018-04-01", "2018-04-01"]}, "column TX_DATETIME .* is not a time such as"),
        ({"TX_DATETIME": [1, 2, 3, 4, 5]}, "column TX_DATETIME of type int64 holds what is not a time"),
        ({"TX_FRAUD": [0, 1, 2, 0, 0]}, "column TX_FRAUD holds values other than 0 and 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_file_and_column(changed: dict[str, list[object]], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        handbook_file.write(handbook(tmp_path / "in.parquet", **changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named_with_what_is_needed(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"TRANSACTION_ID": [1], "AMOUNT": [1.0]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in.parquet lacks the columns TX_DATETIME, .*it has TRANSACTION_ID, AMOUNT.*needed are"):
        handbook_file.write(tmp_path / "in.parquet", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.parquet", b"not parquet", "cannot be read as Parquet"),
        ("in.csv", b"", "cannot be read as CSV"),
        ("in.csv", (",".join(NAMES) + "\n").encode(), "holds no transactions"),
        ("in.csv", (",".join(NAMES) + "\n1,2\n").encode(), "cannot be read as CSV"),
        ("in.xlsx", b"", "neither .parquet nor .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{says}"):
        handbook_file.write(tmp_path / name, tmp_path / "out")


def test_a_missing_file_an_empty_folder_and_too_many_days_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, days, says in (
        (tmp_path / "none.csv", 0, "does not exist"),
        (tmp_path / "empty", 0, "holds no .parquet and no .csv file"),
        (handbook(tmp_path / "in.parquet"), 9, "covers 9 days, so 9 cannot be held back"),
    ):
        with pytest.raises(InputError, match=says):
            handbook_file.write(path, tmp_path / "out", days)
