"""Turn a file of the Fraud Detection Handbook's form into CSV files to load.

Read are TRANSACTION_ID, TX_DATETIME (UTC), CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, TX_FRAUD and TX_FRAUD_SCENARIO of a Parquet or CSV
file, or of all such files in a folder; other columns are left alone. Names, countries, categories, channels and devices come from
the simulator's functions, by id. A fraud is reported seven days after its transaction; the file's end is taken for 'now', so
reports that would come after its newest transaction are not in the source yet.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console
from rich.progress import Progress

from etl.errors import RefusedError
from etl.log import logger, run_main
from etl.settings import settings
from etl.simulator import (
    DAY_MICROSECONDS,
    REPORT_DELAY_DAYS,
    CsvFile,
    Ids,
    customer_details,
    output_folder,
    report_rows,
    terminal_details,
    transaction_rows,
    write_csv,
)

SUFFIXES = (".parquet", ".csv")
ROWS_AT_ONCE = 500_000
COLUMNS = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD", "TX_FRAUD_SCENARIO")
INTEGERS = tuple(name for name in COLUMNS if name not in ("TX_DATETIME", "TX_AMOUNT"))
LARGEST_AMOUNT = 9_999_999_999.99


class InputError(RefusedError):
    """A file cannot be used; nothing was written."""


@dataclass(frozen=True)
class Written:
    """Rows of the full load, the days that come as increments, and rows of those."""

    customers: int
    terminals: int
    transactions: int
    fraud_reports: int
    increments: int
    incremental_transactions: int
    incremental_reports: int


# --- Reading ---------------------------------------------------------------------------------------------------------------


def input_files(path: Path) -> list[Path]:
    """Return the file, or the Parquet and CSV files of the folder in the order of their names.

    Raises
    ------
    InputError
        When there is none.
    """
    if path.is_dir():
        if files := sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES):
            return files
        raise InputError(f"{path} holds no .parquet and no .csv file; name a folder that does, or a file")
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a Parquet or CSV file, or a folder of them")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in neither .parquet nor .csv; convert it, or rename it if it is one of them")
    return [path]


def read(path: Path, columns: tuple[str, ...] = COLUMNS) -> Iterator[dict[str, Ids]]:
    """Yield some rows at a time; integers as they are, TX_DATETIME as microseconds since 1970, TX_AMOUNT as cents.

    Raises
    ------
    InputError
        Naming the file and the column, when a column is missing or a value is not of its type.
    """
    try:
        for batch in _batches(path, columns):
            yield {name: _values(path, name, batch.column(name)) for name in columns}
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
        raise InputError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}; check that the file is whole") from error


def _batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            _require(path, file.schema_arrow.names)
            yield from file.iter_batches(ROWS_AT_ONCE, columns=list(columns))
        return
    # All as text: guessing types from the first block would make the outcome depend on it.
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True, null_values=[""], quoted_strings_can_be_null=True
    )
    with pyarrow.csv.open_csv(path, pyarrow.csv.ReadOptions(block_size=1 << 24), convert_options=options) as reader:
        _require(path, reader.schema.names)
        yield from reader


def _require(path: Path, names: list[str]) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        raise InputError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} (it has {', '.join(names)[:300]}); "
            f"needed are {', '.join(COLUMNS)}"
        )


def _values(path: Path, name: str, column: pa.Array) -> Ids:
    if column.null_count:
        raise InputError(f"{path}: column {name} has {column.null_count} empty values; fill or remove these rows")
    try:
        if name == "TX_AMOUNT":
            return _cents(path, column)
        if name == "TX_DATETIME":
            return _microseconds(column)
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        wanted = {"TX_AMOUNT": "a number", "TX_DATETIME": "a time such as 2018-04-01 00:00:31"}.get(name, "a whole number")
        raise InputError(
            f"{path}: column {name} of type {column.type} holds what is not {wanted} ({str(error).splitlines()[0]}); correct it"
        ) from error


def _microseconds(column: pa.Array) -> Ids:
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type) or pa.types.is_string(column.type)):
        raise pa.ArrowInvalid("not a time")
    if pa.types.is_string(column.type) and column[:1].to_pylist()[0][-1:] == "Z":
        return column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64()).to_numpy()


def _cents(path: Path, column: pa.Array) -> Ids:
    amounts = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    # The comparison is false for NaN too.
    bad = ~((amounts >= 0) & (amounts <= LARGEST_AMOUNT))
    if bad.any():
        raise InputError(
            f"{path}: column TX_AMOUNT has {int(bad.sum())} values that are negative, not finite or too large, such as "
            f"{amounts[bad][0]}; correct or remove these rows"
        )
    return np.rint(amounts * 100).astype(np.int64)


# --- Writing ---------------------------------------------------------------------------------------------------------------


def write(path: Path, folder: Path, hold_back_days: int = 0, progress: Progress | None = None) -> Written:
    """Write the CSV files of a Handbook file.

    `full/<table>.csv` holds what the source knew at the beginning of the held-back days: all customers and terminals, the
    transactions before, and the reports made before. `incremental/<date>/` holds, for each held-back day, its transactions and the
    reports made on it. All of them together are what `hold_back_days=0` writes.

    Parameters
    ----------
    path
        A Parquet or CSV file, or a folder of them.
    folder
        Where to write; see `etl.simulator.output_folder`.
    hold_back_days
        How many of the last days come as daily increments.
    progress
        Shows the files' rows.

    Raises
    ------
    InputError
        When a file cannot be used; nothing is written.
    """
    files = input_files(path)
    oldest, newest, count = _time_range(files)
    last_day = newest // DAY_MICROSECONDS
    first_held = last_day - hold_back_days + 1
    if first_held <= oldest // DAY_MICROSECONDS and hold_back_days:
        raise InputError(f"{path} covers {last_day - oldest // DAY_MICROSECONDS + 1} days, so {hold_back_days} cannot be held back")
    task = progress.add_task("reading transactions", total=count) if progress else None
    customers: list[Ids] = []
    terminals: list[Ids] = []
    counts = {"transactions": [0, 0], "fraud_reports": [0, 0]}
    with output_folder(folder) as partial, ExitStack() as writers:
        opened: dict[Path, CsvFile] = {}

        def append(table: str, day: int, rows: pa.Table) -> None:
            into = partial / "full" if day < first_held else partial / "incremental" / _date(day)
            target = into / f"{table}.csv"
            if target not in opened:
                opened[target] = writers.enter_context(closing(CsvFile(target)))
            opened[target].write(rows)
            counts[table][day >= first_held] += rows.num_rows

        for file in files:
            for rows in read(file):
                customers.append(np.unique(rows["CUSTOMER_ID"]))
                terminals.append(np.unique(rows["TERMINAL_ID"]))
                for day, which in _by_day(rows["TX_DATETIME"], first_held):
                    append("transactions", day, _transactions(rows, which))
                frauds, reported_at = _reported(file, rows, newest)
                for day, which in _by_day(reported_at, first_held):
                    append("fraud_reports", day, _reports(rows, frauds[which], reported_at[which]))
                if progress and task is not None:
                    progress.advance(task, len(rows["TX_DATETIME"]))
        customer_ids, terminal_ids = np.unique(np.concatenate(customers)), np.unique(np.concatenate(terminals))
        write_csv(customer_details(customer_ids), partial / "full" / "customers.csv")
        write_csv(terminal_details(terminal_ids), partial / "full" / "terminals.csv")
    (transactions, held_transactions), (reports, held_reports) = counts["transactions"], counts["fraud_reports"]
    return Written(len(customer_ids), len(terminal_ids), transactions, reports, hold_back_days, held_transactions, held_reports)


def _time_range(files: list[Path]) -> tuple[int, int, int]:
    ranges = [
        (int(times.min()), int(times.max()), len(times))
        for file in files
        for times in (rows["TX_DATETIME"] for rows in read(file, ("TX_DATETIME",)))
        if len(times)
    ]
    if not ranges:
        raise InputError(f"{', '.join(map(str, files))[:300]} holds no transactions")
    return min(entry[0] for entry in ranges), max(entry[1] for entry in ranges), sum(entry[2] for entry in ranges)


def _date(day: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()


def _by_day(times: Ids, first_held: int) -> Iterator[tuple[int, Ids]]:
    """Yield the rows before the held-back days, under the day before them, then those of each held-back day."""
    days = np.maximum(times // DAY_MICROSECONDS, first_held - 1)
    for day in np.unique(days):
        yield int(day), np.flatnonzero(days == day)


def _transactions(rows: dict[str, Ids], which: Ids) -> pa.Table:
    transaction_id, customer_id, terminal_id, transacted_at, cents = (
        rows[name][which] for name in ("TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID", "TX_DATETIME", "TX_AMOUNT")
    )
    return transaction_rows(transaction_id, customer_id, terminal_id, transacted_at, cents)


def _reported(path: Path, rows: dict[str, Ids], newest: int) -> tuple[Ids, Ids]:
    """Return the places of the frauds that are reported by the end of the data, and when they are."""
    if not np.isin(rows["TX_FRAUD"], (0, 1)).all():
        raise InputError(f"{path}: column TX_FRAUD holds values other than 0 and 1; correct them")
    reported_at = rows["TX_DATETIME"] + REPORT_DELAY_DAYS * DAY_MICROSECONDS
    frauds = np.flatnonzero((rows["TX_FRAUD"] == 1) & (reported_at <= newest))
    return frauds, reported_at[frauds]


def _reports(rows: dict[str, Ids], which: Ids, reported_at: Ids) -> pa.Table:
    return report_rows(rows["TRANSACTION_ID"][which], reported_at, np.ones(len(which), np.bool_), rows["TX_FRAUD_SCENARIO"][which])


def main() -> int:
    """Write CSV files from the command line."""
    parser = argparse.ArgumentParser(prog="python -m etl.handbook_file", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--input", type=Path, required=True, metavar="FILE|DIR", help="Parquet or CSV file, or a folder of them")
    parser.add_argument("--out", type=Path, default=settings().data_dir / "input", help="folder for the CSV files")
    parser.add_argument("--hold-back-days", type=int, default=0, help="how many of the last days come as daily increments")
    arguments = parser.parse_args()
    if arguments.hold_back_days < 0:
        raise RefusedError(f"--hold-back-days is {arguments.hold_back_days}; give 0 or more")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        written = write(arguments.input, arguments.out, arguments.hold_back_days, progress)
    logger.info("prepared", input=str(arguments.input), folder=str(arguments.out), **vars(written))
    return 0


if __name__ == "__main__":
    run_main(main)
