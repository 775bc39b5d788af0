"""Loading CSV files into the source: what arrives, what is rejected and why."""

from __future__ import annotations

import datetime as dt
import functools
import os
import re
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import psycopg2
import pytest

from etl import load_csv
from etl.errors import BusyError
from etl.load_csv import BadFileError, load_files
from etl.ops import run, writer
from etl.settings import ROOT
from tests.kills import Step, killed_at
from tests.postgres import rows

HEADER = "transaction_id,customer_id,terminal_id,transacted_at,amount,currency,channel,device\n"
GOOD = "1,1,7,2018-04-01T00:00:31Z,57.16,EUR,chip,card\n"


@pytest.fixture
def parents(bank: None) -> None:
    rows("INSERT INTO bank.customers VALUES (1, 'Ada', NULL, 'GB'), (2, 'Bob', NULL, 'GB')")
    rows("INSERT INTO bank.terminals VALUES (7, 'Shop', 'GB', 'grocery'), (8, 'Fuel', 'GB', 'fuel')")


def write(folder: Path, content: str | bytes, name: str = "transactions.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rejected() -> list[tuple[object, ...]]:
    return rows("SELECT line, column_name, reason FROM ops.rejects ORDER BY origin, line, reason", role="etl", dbname="warehouse")


def ids() -> list[object]:
    return [row[0] for row in rows("SELECT transaction_id FROM bank.transactions ORDER BY 1")]


# --- Good rows -------------------------------------------------------------------------------------------------------------


def test_rows_arrive_as_they_stand_in_the_file(parents: None, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + GOOD
        + "9223372036854775807,2,8,2018-04-01 02:00:00.123456+02:00,0,USD,online,\n"
        + '"3","2","8","2020-02-29","9999999999.99","JPY","phone","Zoë, ""the"" phone"\n',
    )
    (loaded,) = load_files([path], "incremental")
    assert (loaded.inserted, loaded.updated, loaded.unchanged, loaded.rejected) == (3, 0, 0, 0)
    assert rows(
        "SELECT transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel, device "
        "FROM bank.transactions ORDER BY transacted_at, transaction_id"
    ) == [
        (9223372036854775807, 2, 8, dt.datetime(2018, 4, 1, 0, 0, 0, 123456, dt.UTC), Decimal("0.00"), "USD", "online", None),
        (1, 1, 7, dt.datetime(2018, 4, 1, 0, 0, 31, tzinfo=dt.UTC), Decimal("57.16"), "EUR", "chip", "card"),
        (3, 2, 8, dt.datetime(2020, 2, 29, tzinfo=dt.UTC), Decimal("9999999999.99"), "JPY", "phone", 'Zoë, "the" phone'),
    ]


def test_windows_files_load_like_others(parents: None, tmp_path: Path) -> None:
    content = HEADER + GOOD + '2,1,7,2018-04-01,1,EUR,chip,"two\r\nlines"\n3,1,7,2018-04-01,1,EUR,chip,\n'
    path = write(tmp_path, b"\xef\xbb\xbf" + content.replace("\r\n", "\n").replace("\n", "\r\n").encode())
    load_files([path], "incremental")
    assert rows("SELECT transaction_id, device FROM bank.transactions ORDER BY 1") == [(1, "card"), (2, "two\r\nlines"), (3, None)]
    assert rejected() == []


def test_columns_may_stand_in_any_order_and_the_last_newline_may_lack(parents: None, tmp_path: Path) -> None:
    path = write(
        tmp_path, "amount,device,transaction_id,terminal_id,customer_id,channel,currency,transacted_at\n1.5,,4,8,2,chip,EUR,2018-04-01"
    )
    load_files([path], "full")
    assert rows("SELECT transaction_id, customer_id, terminal_id, amount FROM bank.transactions") == [(4, 2, 8, Decimal("1.50"))]


def test_statements_in_values_are_only_text(parents: None, tmp_path: Path) -> None:
    evil = "'); DROP TABLE bank.transactions; --"
    load_files([write(tmp_path, HEADER + f"1,1,7,2018-04-01,1,EUR,chip,{evil}\n", "a'; DROP TABLE x; --.csv")], "incremental")
    assert rows("SELECT device FROM bank.transactions") == [(evil,)]


def test_blank_lines_are_skipped(parents: None, tmp_path: Path) -> None:
    load_files([write(tmp_path, HEADER + "\n" + GOOD + "\n\r\n2,x,7,2018-04-01,1,EUR,chip,\n\n")], "incremental")
    assert ids() == [1]
    assert rejected() == [(6, "customer_id", "customer_id is not a whole number")]


# --- Loading again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_loading_a_file_twice_changes_nothing(mode: load_csv.Mode, parents: None, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + GOOD + "2,x,7,2018-04-01,1,EUR,chip,\n3,9,7,2018-04-01,1,EUR,chip,\n")
    load_files([path], mode)
    before = rows("SELECT *, xmin, xmax, ctid FROM bank.transactions"), rejected()
    (again,) = load_files([path], mode)
    assert (again.inserted, again.updated, again.unchanged, again.rejected) == (0, 0, 1, 2)
    assert (rows("SELECT *, xmin, xmax, ctid FROM bank.transactions"), rejected()) == before


def test_only_rows_that_differ_are_updated(parents: None, tmp_path: Path) -> None:
    other = "2,1,7,2018-04-01,10.00,EUR,chip,\n"
    load_files([write(tmp_path, HEADER + GOOD + other)], "incremental")
    before = dict(rows("SELECT transaction_id, updated_at FROM bank.transactions"))
    (loaded,) = load_files([write(tmp_path, HEADER + GOOD.replace("57.16", "57.17") + other + other.replace("2,1", "3,1"))], "incremental")
    after = dict(rows("SELECT transaction_id, updated_at FROM bank.transactions"))
    assert (loaded.inserted, loaded.updated, loaded.unchanged) == (1, 1, 1)
    assert after[1] > before[1]
    assert after[2] == before[2]
    assert rows("SELECT amount FROM bank.transactions WHERE transaction_id = 1") == [(Decimal("57.17"),)]


def test_a_full_load_deletes_nothing(parents: None, tmp_path: Path) -> None:
    load_files([write(tmp_path, HEADER + GOOD)], "full")
    load_files([write(tmp_path, HEADER + GOOD.replace("1,1,7", "2,1,7"))], "full")
    assert ids() == [1, 2]


def test_parents_are_loaded_first_whatever_the_order_of_the_files(bank: None, tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "transaction_id,reported_at,is_fraud,scenario\n1,2018-04-08,true,1\n99,2018-04-08,f,\n", "a.csv"),
        write(tmp_path, HEADER + GOOD, "b.csv"),
        write(tmp_path, "terminal_id,terminal_name,country,category\n7,Shop,GB,grocery\n", "c.csv"),
        write(tmp_path, "customer_id,customer_name,email,country\n1,Ada,ada@example.org,GB\n", "d.csv"),
    ]
    assert [loaded.table for loaded in load_files(paths, "full")] == ["customers", "terminals", "transactions", "fraud_reports"]
    assert rows("SELECT transaction_id, is_fraud, scenario FROM bank.fraud_reports ORDER BY 1") == [(1, True, 1), (99, False, None)]


def test_a_large_full_load_checks_foreign_keys_once_and_keeps_them(parents: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_csv, "BULK_ROWS", 2)
    keys = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'bank.transactions'::regclass ORDER BY 1"
    before = rows(keys)
    many = "".join(f"{number},1,7,2018-04-01,1,EUR,chip,\n" for number in range(2, 6))
    load_files([write(tmp_path, HEADER + GOOD + many + "9,3,7,2018-04-01,1,EUR,chip,\n")], "full")
    load_files(
        [write(tmp_path, HEADER + GOOD.replace("57.16", "1") + many.replace(",1,EUR", ",2,EUR") + "7,1,7,2018-04-01,1,EUR,chip,\n")], "full"
    )
    assert rows("SELECT transaction_id, amount::int FROM bank.transactions ORDER BY 1") == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (7, 1)]
    assert rows(keys) == before
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        rows("DELETE FROM bank.customers WHERE customer_id = 1")


def test_a_large_full_load_goes_on_while_the_table_is_read(parents: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_csv, "BULK_ROWS", 1)
    monkeypatch.setattr(load_csv, "LOCK_TIMEOUT", "100ms")
    from etl.databases import opened

    with opened("extractor", "bank") as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM bank.transactions")
        load_files([write(tmp_path, HEADER + GOOD)], "full")
    assert ids() == [1]


# --- Bad lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("2,1,7,2018-04-01,1,EUR,chip", None, "fields are missing: the line has 7, the header 8"),
        ("2,1,7,2018-04-01,1,EUR,chip,card,", None, "fields are too many: the line has 9, the header 8"),
        (";", None, "fields are missing: the line has 1, the header 8"),
        ("x,1,7,2018-04-01,1,EUR,chip,card", "transaction_id", "transaction_id is not a whole number"),
        (",1,7,2018-04-01,1,EUR,chip,card", "transaction_id", "transaction_id is missing"),
        ('"",1,7,2018-04-01,1,EUR,chip,card', "transaction_id", "transaction_id is missing"),
        ("1.0,1,7,2018-04-01,1,EUR,chip,card", "transaction_id", "transaction_id is not a whole number"),
        ("9223372036854775808,1,7,2018-04-01,1,EUR,chip,", "transaction_id", "transaction_id is out of the range of bigint"),
        ("2,3,7,2018-04-01,1,EUR,chip,card", "customer_id", "customer_id is unknown: bank.customers has no such row"),
        ("2,1,9,2018-04-01,1,EUR,chip,card", "terminal_id", "terminal_id is unknown: bank.terminals has no such row"),
        ("2,1,7,2018-02-29,1,EUR,chip,card", "transacted_at", "transacted_at is an impossible date or time"),
        ("2,1,7,2018-13-01,1,EUR,chip,card", "transacted_at", "transacted_at is an impossible date or time"),
        ("2,1,7,2018-04-01 24:00:01,1,EUR,chip,card", "transacted_at", "transacted_at is an impossible date or time"),
        ("2,1,7,0000-01-01,1,EUR,chip,card", "transacted_at", "transacted_at is an impossible date or time"),
        *(
            (
                f"2,1,7,{value},1,EUR,chip,card",
                "transacted_at",
                "transacted_at is not a date or time such as 2024-01-31 or 2024-01-31T23:59:59.999999Z",
            )
            for value in ("infinity", "yesterday", "01.04.2018", "1522540800", "now")
        ),
        ("2,1,7,2018-04-01,-0.01,EUR,chip,card", "amount", "amount is negative"),
        *(
            (f"2,1,7,2018-04-01,{value},EUR,chip,card", "amount", "amount is not a number")
            for value in ("NaN", "inf", "1e3", "ten", "1 0", "0x10")
        ),
        ('2,1,7,2018-04-01,"1,00",EUR,chip,card', "amount", "amount is not a number"),
        ("2,1,7,2018-04-01,1.005,EUR,chip,card", "amount", "amount has more than 2 decimals"),
        ("2,1,7,2018-04-01,10000000000,EUR,chip,card", "amount", "amount has more than 10 digits before the point"),
        *(
            (f"2,1,7,2018-04-01,1,{value},chip,card", "currency", "currency is not three capital letters (ISO 4217)")
            for value in ("EURO", "eur", "12")
        ),
        ("2,1,7,2018-04-01,1,EUR,carrier pigeon,card", "channel", "channel is none of chip, contactless, magstripe, online, phone"),
        (f"2,1,7,2018-04-01,1,EUR,chip,{'é' * 101}", "device", "device is longer than 100 characters"),
        ("2,1,7,2018-04-01,1,EUR,chip,ca\0rd", None, "the line holds a NUL byte"),
        ("2,1,7,2018-04-01,1,EUR,chip,ca\rrd", None, "a carriage return stands in the middle of the line"),
        ('2,1,7,2018-04-01,1,EUR,chip,ca"rd', None, "a quote stands in the wrong place or is never closed"),
        ('2,1,7,2018-04-01,1,EUR,chip,"card', None, "a quote stands in the wrong place or is never closed"),
        ('2,1,7,2018-04-01,1,EUR,"ch"ip,card', None, "a quote stands in the wrong place or is never closed"),
        (b"2,1,7,2018-04-01,1,EUR,chip,caf\xe9", None, "the line is not valid UTF-8: byte 0xe9 at byte 32 of the line"),
        (b"2,1,7,2018-04-01,1,EUR,chip,\xed\xa0\x80", None, "the line is not valid UTF-8: byte 0xed at byte 29 of the line"),
        ('2,1,7,2018-04-01,1,EUR,chip,"a\n\\.\nb"', "device", "device has a line that begins with \\."),
        ("2," + "1" * 70_000 + ",7,2018-04-01,1,EUR,chip,card", None, "the line is longer than 65536 bytes"),
        ("1,2,8,2018-05-01,9,EUR,chip,", "transaction_id", "the same transaction_id stands in an earlier line of this file"),
        (
            "x,1,7,2018-02-30,1,EUR,chip,card",
            "transaction_id",
            "transaction_id is not a whole number; transacted_at is an impossible date or time",
        ),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason_and_the_others_load(
    line: str | bytes, column: str | None, reason: str, parents: None, tmp_path: Path
) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, (HEADER + GOOD).encode() + bad + b"\n" + GOOD.replace("1,1,7", "5,1,7").encode())
    (loaded,) = load_files([path], "incremental")
    assert ids() == [1, 5]
    assert rejected() == [(3, column, reason)]
    assert (loaded.rows, loaded.inserted, loaded.rejected) == (3, 2, 1)


def test_line_numbers_count_line_breaks_inside_quotes(parents: None, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + '1,1,7,2018-04-01,1,EUR,chip,"three\nlines\nlong"\n'  # lines 2 to 4
        + "2,x,7,2018-04-01,1,EUR,chip,\n"  # 5
        + '3,1,7,2018-04-01,1,EUR,"no\nchannel",\n'  # 6 and 7
        + "4,99,7,2018-04-01,1,EUR,chip,\n"  # 8
        + '5,1,7,2018-04-01,1,EUR,chip,"two\nlines"\n'  # 9 and 10
        + "5,1,7,2018-04-01,1,EUR,chip,\n"  # 11
        + "6,1,7,2018-04-01,-1,EUR,chip,\n",  # 12
    )
    load_files([path], "incremental")
    assert [row[:2] for row in rejected()] == [
        (5, "customer_id"),
        (6, "channel"),
        (8, "customer_id"),
        (11, "transaction_id"),
        (12, "amount"),
    ]
    assert ids() == [1, 5]


def test_a_quote_that_is_never_closed_costs_one_line_only(parents: None, tmp_path: Path) -> None:
    many = "".join(f"{number},1,7,2018-04-01,1,EUR,chip,\n" for number in range(10, 3000))
    load_files([write(tmp_path, HEADER + '2,1,7,2018-04-01,1,EUR,"chip,\n' + many)], "incremental")
    assert ids() == list(range(10, 3000))
    assert [row[0] for row in rejected()] == [2]


def test_the_first_good_line_of_a_key_stands(parents: None, tmp_path: Path) -> None:
    lines = [
        "2,1,7,2018-04-01,-5,EUR,chip,",
        "2,1,7,2018-04-01,6,EUR,chip,",
        "2,1,7,2018-04-01,7,EUR,chip,",
        "2,1,7,2018-04-01,6,EUR,chip,",
    ]
    load_files([write(tmp_path, HEADER + "\n".join(lines) + "\n")], "incremental")
    assert rows("SELECT transaction_id, amount FROM bank.transactions") == [(2, Decimal("6.00"))]
    assert [row[:2] for row in rejected()] == [(2, "amount"), (4, "transaction_id"), (5, "transaction_id")]


def test_a_reject_names_file_and_key_and_masks_card_numbers(parents: None, tmp_path: Path) -> None:
    path = write(
        tmp_path, HEADER + GOOD + "2,1,7,2018-04-01,-1,EUR,chip,4111 1111 1111 1111\n4111111111111111,x,7,2018-04-01,1,EUR,chip,\n"
    )
    load_files([path], "incremental")
    assert rows("SELECT table_name, origin, key, payload FROM ops.rejects ORDER BY line", role="etl", dbname="warehouse") == [
        ("transactions", str(path), "2", "2,1,7,2018-04-01,-1,EUR,chip,**** **** **** ****"),
        ("transactions", str(path), "*" * 16, f"{'*' * 16},x,7,2018-04-01,1,EUR,chip,"),
    ]


# --- Bad files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        (HEADER, "holds no rows"),
        (HEADER + "\n\n", "holds no rows"),
        (GOOD, "the header fits no table"),
        (HEADER.replace("amount", "tx_amount") + GOOD, r"nearest is transactions .* lacks amount; has the unknown tx_amount"),
        (HEADER.replace(",device", "") + GOOD, "lacks device"),
        (HEADER.replace(",device", ",device,updated_at") + GOOD, "has the unknown updated_at"),
        (HEADER.replace(",device", ",device,device") + GOOD, "has twice device"),
        (HEADER.replace(",", ";") + GOOD, "fits no table"),
        (b"\xff\xfe" + HEADER.encode("utf-16-le"), "not a CSV header in UTF-8"),
        (HEADER + GOOD.replace("57.16", "-1") + "2,1\n", "all 2 lines are bad.*the first, line 2: amount is negative"),
    ],
)
def test_a_bad_file_fails_and_changes_nothing(content: str | bytes, says: str, parents: None, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=f"(?s){re.escape(str(tmp_path))}.*{says}"):
        load_files([write(tmp_path, content)], "incremental")
    assert ids() == []


def test_no_file_is_loaded_when_the_header_of_one_is_wrong(parents: None, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="fits no table"):
        load_files([write(tmp_path, HEADER + GOOD, "a.csv"), write(tmp_path, "a,b\n1,2\n", "b.csv")], "incremental")
    with pytest.raises(BadFileError, match="is not a file"):
        load_files([write(tmp_path, HEADER + GOOD, "a.csv"), tmp_path / "none.csv"], "incremental")
    assert ids() == []


def test_a_second_load_of_the_table_is_refused_naming_the_first(parents: None, tmp_path: Path) -> None:
    with run("load_csv") as first, writer("bank.transactions", first), pytest.raises(BusyError, match=first.run_id):
        load_files([write(tmp_path, HEADER + GOOD)], "incremental")


# --- Killed ----------------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_all_or_nothing_is_loaded_and_running_again_completes(parents: None, tmp_path: Path) -> None:
    count = 120_000
    path = write(
        tmp_path, HEADER + "".join(f"{number},1,7,2018-04-01,1,EUR,chip,\n" for number in range(count)) + "x,1,7,2018-04-01,1,EUR,chip,\n"
    )
    command = [sys.executable, "-m", "etl.load_csv", "full", str(path)]
    seen = set()
    for attempt in range(5):
        loader = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for_load(attempt)
        os.killpg(loader.pid, signal.SIGKILL)
        loader.wait()
        (found,) = rows("SELECT count(*) FROM bank.transactions")
        seen.add(found[0])
    assert seen <= {0, count}
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert rows("SELECT count(*), min(transaction_id), max(transaction_id) FROM bank.transactions") == [(count, 0, count - 1)]
    assert [row[0] for row in rejected()] == [count + 2]
    assert rows("SELECT count(*) FROM pg_constraint WHERE conrelid = 'bank.transactions'::regclass AND contype = 'f'") == [(2,)]


STEPS = {
    "before the first byte": Step("etl.load_csv:_Load.stage", "before"),
    "while it is copied": Step("etl.load_csv:copyable", "before"),
    "after it is staged": Step("etl.load_csv:_Load.stage", "after"),
    "before bad lines are recorded": Step("etl.load_csv:_Load._record_bad", "before"),
    "after bad lines are recorded": Step("etl.load_csv:_Load._record_bad", "after"),
    "before the write": Step("etl.load_csv:_Load.write", "before"),
    "in the open transaction": Step("etl.load_csv:_Load._on_conflict", "after"),
    "after the commit": Step("etl.load_csv:_Load.write", "after"),
    "before the run is recorded": Step("etl.ops:_end", "before"),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_all_or_nothing_is_loaded_and_running_again_completes(parents: None, tmp_path: Path, step: str) -> None:
    # A line that is no record, and one that only the table's checks refuse.
    path = write(
        tmp_path, HEADER + GOOD + "x,1,7,2018-04-01,1,EUR,chip,\n" + GOOD.replace("1,1,7", "4,99,7") + GOOD.replace("1,1,7", "5,1,7")
    )
    killed_at(STEPS[step], f"from pathlib import Path; from etl.load_csv import load_files; load_files([Path({str(path)!r})], 'full')")
    is_loaded = step in ("after the commit", "before the run is recorded")
    assert ids() == ([1, 5] if is_loaded else [])
    (loaded,) = load_files([path], "full")
    assert (loaded.inserted, loaded.unchanged) == ((0, 2) if is_loaded else (2, 0))
    assert ids() == [1, 5]
    assert [row[0] for row in rejected()] == [3, 4]
    assert load_files([path], "full")[0].unchanged == 2


def test_interrupted_it_says_so_and_loads_nothing(parents: None, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "".join(f"{number},1,7,2018-04-01,1,EUR,chip,\n" for number in range(400_000)))
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loader = subprocess.Popen([sys.executable, "-m", "etl.load_csv", "full", str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_load(0)
    loader.send_signal(signal.SIGINT)
    _, told = loader.communicate()
    assert (loader.returncode, ids()) == (130, [])
    assert "run the same command again" in told


def test_interrupted_where_psycopg2_calls_for_more_it_is_no_lost_database(
    parents: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a signal's handler raises it at the first step of `read`: with a value on some versions of Python, without on others.
    for handler in (functools.partial(signal.default_int_handler, signal.SIGINT), interrupted):
        monkeypatch.setattr(load_csv._Pieces, "read", staticmethod(handler))
        with pytest.raises(KeyboardInterrupt):
            load_files([write(tmp_path, HEADER + GOOD)], "full")
    assert ids() == []


def interrupted(_size: int) -> bytes:
    raise KeyboardInterrupt


def wait_for_load(step: int) -> None:
    """Wait until the loader is at work in Postgres, then a little longer with each step."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if rows("SELECT 1 FROM pg_stat_activity WHERE application_name = 'load_csv' AND query ~ 'COPY|INSERT|ANALYZE'"):
            time.sleep(0.15 * step)
            return
        time.sleep(0.02)
    raise AssertionError("the loader did not begin")
