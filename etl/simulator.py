"""Simulate a bank: customers, terminals, card transactions and fraud reports, as CSV files to load.

The model, with its three kinds of fraud, is the one of Le Borgne, Siblini, Lebichot and Bontempi, "Reproducible Machine Learning
for Credit Card Fraud Detection - Practical Handbook" (chapter 3, "Transaction data simulator"); names, countries, categories,
channels and devices are beyond it and say nothing about fraud.

Every draw is a hash of the seed, what is drawn, and the ids concerned. So the outcome depends neither on the order nor on the
size of the pieces in which it is computed, and the details of a customer can be had from its id alone.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import hashlib
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from faker import Faker
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from etl.errors import RefusedError
from etl.log import logger, run_main
from etl.settings import settings

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]

DAY_MICROSECONDS = 86_400_000_000
SIDE = 100.0
LARGE_AMOUNT_CENTS = 220_00
COMPROMISED_TERMINALS_A_DAY, COMPROMISED_DAYS = 2, 28
LEAKED_CUSTOMERS_A_DAY, LEAKED_DAYS, LEAKED_SHARE, LEAKED_FACTOR = 3, 14, 1 / 3, 5
REPORT_DELAY_DAYS = 7

TRANSACTIONS = pa.schema(
    [
        ("transaction_id", pa.int64()),
        ("customer_id", pa.int64()),
        ("terminal_id", pa.int64()),
        ("transacted_at", pa.timestamp("us", "UTC")),
        ("amount", pa.decimal128(12, 2)),
        ("currency", pa.string()),
        ("channel", pa.string()),
        ("device", pa.string()),
    ]
)
REPORTS = pa.schema(
    [("transaction_id", pa.int64()), ("reported_at", pa.timestamp("us", "UTC")), ("is_fraud", pa.bool_()), ("scenario", pa.int16())]
)

# Country, the share of the map's width that it takes, and the locale of its names.
COUNTRIES = (
    ("FR", 0.40, "fr_FR"), ("BE", 0.15, "nl_BE"), ("DE", 0.15, "de_DE"), ("NL", 0.10, "nl_NL"),
    ("ES", 0.08, "es_ES"), ("IT", 0.06, "it_IT"), ("AT", 0.03, "de_AT"), ("PT", 0.03, "pt_PT"),
)  # fmt: skip
CATEGORIES = {
    "grocery": 0.30, "restaurant": 0.16, "clothing": 0.10, "fuel": 0.08, "web shop": 0.08, "pharmacy": 0.06,
    "electronics": 0.06, "entertainment": 0.06, "travel": 0.05, "services": 0.05,
}  # fmt: skip
CHANNELS = ("contactless", "chip", "magstripe", "phone", "online")
IN_STORE = (0.60, 0.33, 0.02, 0.02, 0.03)
CHANNELS_OF = {"web shop": (0.0, 0.0, 0.0, 0.04, 0.96), "travel": (0.15, 0.20, 0.01, 0.09, 0.55)}
COMPUTERS = ("windows", "mac", "linux")
PHONES = ("android", "ios")
DEVICES = ("card", *PHONES, *COMPUTERS)
NAMES_OF_A_KIND = 300


@dataclass(frozen=True)
class Simulation:
    """What to simulate. Days count from `start`; the last `incremental_days` of them come as daily increments."""

    seed: int = 0
    start: dt.date = dt.date(2018, 4, 1)
    days: int = 183
    customers: int = 5_000
    terminals: int = 10_000
    radius: float = 5.0
    incremental_days: int = 7
    stream_days: int = 1
    new_customers_a_day: int = 5
    new_terminals_a_day: int = 5
    report_spread_days: float = 0.0
    genuine_share: float = 0.001
    late_share: float = 0.002
    corrected_share: float = 0.001
    changed_customers_share: float = 0.001

    @property
    def first_increment(self) -> int:
        """Day whose arrivals are the first increment."""
        return self.days - self.incremental_days

    @property
    def last_day(self) -> int:
        """The day after the last one that is drawn, those of the stream included."""
        return self.days + self.stream_days

    def midnight(self, day: int) -> int:
        """Return the beginning of a day, microseconds since 1970."""
        return ((self.start - dt.date(1970, 1, 1)).days + day) * DAY_MICROSECONDS


# --- Draws -----------------------------------------------------------------------------------------------------------------


def _mix(value: Hashes) -> Hashes:
    """Scramble 64 bits (the finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators")."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _hash(seed: int, what: str, *keys: Ids) -> Hashes:
    """Return 64 random bits for each element of the keys."""
    salt = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest(), "big"))
    bits = np.full(1, salt)
    for key in keys:
        bits = _mix((bits ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    return bits


def _uniform(bits: Hashes) -> Floats:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw(seed: int, what: str, *keys: Ids) -> Floats:
    """Return a number of [0, 1) for each element of the keys."""
    return _uniform(_hash(seed, what, *keys))


def _normal(seed: int, what: str, keys: Ids) -> Floats:
    """Return standard normal numbers (Box and Muller's transform)."""
    radius = np.sqrt(-2.0 * np.log1p(-_draw(seed, f"{what} radius", keys)))
    return radius * np.cos(2.0 * np.pi * _draw(seed, f"{what} angle", keys))


def _poisson(mean: Floats, uniform: Floats) -> Ids:
    """Return Poisson counts by inversion, for means up to 4."""
    probability = np.exp(-mean)
    cumulative = probability.copy()
    count = np.zeros(uniform.shape, np.int64)
    for k in range(1, 40):
        count += uniform >= cumulative
        probability = probability * mean / k
        cumulative = cumulative + probability
    return count


def _choose(shares: tuple[float, ...], uniform: Floats) -> Ids:
    return np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right").astype(np.int64)


# --- Details by id ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    first: list[str]
    last: list[str]
    companies: list[str]
    cities: list[str]


@functools.cache
def _names(locale: str, seed: int) -> _Names:
    """Return pools of names: Faker takes too long to make one for each customer."""
    faker = Faker(locale)
    faker.seed_instance(seed)

    def pool(make: Callable[[], str]) -> list[str]:
        return list(dict.fromkeys(make() for _ in range(NAMES_OF_A_KIND)))

    def city() -> str:
        if locale != "it_IT":
            return faker.city()
        # Faker keeps Italian cities in a set, whose order changes with every process; "00100, Roma (RM)" comes from a dictionary.
        return faker.postcode_city_province().split(", ", 1)[1].rsplit(" (", 1)[0]

    return _Names(pool(faker.first_name), pool(faker.last_name), pool(faker.company), pool(city))


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower().replace("ß", "ss")).encode("ascii", "ignore").decode()
    return "".join(letter for letter in plain if letter.isalnum())


def _location(kind: str, ids: Ids, seed: int) -> tuple[Floats, Floats]:
    return SIDE * _draw(seed, f"{kind} x", ids), SIDE * _draw(seed, f"{kind} y", ids)


def _country(kind: str, ids: Ids, seed: int) -> Ids:
    return _choose(tuple(share for _, share, _ in COUNTRIES), _location(kind, ids, seed)[0] / SIDE)


def _from_pools(pools: list[list[str]], pool: Ids, uniform: Floats) -> pa.Array:
    """Take one entry of the pool of each row."""
    sizes = np.array([len(entries) for entries in pools])
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    index = offsets[pool] + (uniform * sizes[pool]).astype(np.int64)
    return pc.take(pa.array([entry for entries in pools for entry in entries]), pa.array(index))


def customer_details(ids: Ids, seed: int = 0, email_versions: Ids | None = None) -> pa.Table:
    """Return name, e-mail address and country of customers, which depend on the id and the seed alone.

    Parameters
    ----------
    ids
        Customers, shape (n,).
    seed
        Of the simulation.
    email_versions
        How often each address has changed, shape (n,); by default never.

    Returns
    -------
    Table of customer_id, customer_name, email, country.
    """
    country = _country("customer", ids, seed)
    names = [_names(locale, seed) for _, _, locale in COUNTRIES]
    draws = _draw(seed, "first name", ids), _draw(seed, "last name", ids)
    first, last = (_from_pools(pools, country, draw) for pools, draw in zip(_name_pools(names, str), draws, strict=True))
    first_part, last_part = (_from_pools(pools, country, draw) for pools, draw in zip(_name_pools(names, _ascii), draws, strict=True))
    number = pa.array(ids).cast(pa.string())
    if email_versions is not None:
        version = pa.array(email_versions)
        suffix = pc.if_else(pc.greater(version, 0), pc.binary_join_element_wise("-", version.cast(pa.string()), ""), "")
        number = pc.binary_join_element_wise(number, suffix, "")
    # example.com, .net and .org are reserved: no mail ever arrives there.
    host = _from_pools([["@example.com", "@example.net", "@example.org"]], np.zeros_like(country), _draw(seed, "mail host", ids))
    email = pc.binary_join_element_wise(pc.binary_join_element_wise(first_part, last_part, number, "."), host, "")
    return pa.table(
        {
            "customer_id": ids,
            "customer_name": pc.binary_join_element_wise(first, last, " "),
            "email": email,
            "country": pc.take(pa.array([code for code, _, _ in COUNTRIES]), pa.array(country)),
        }
    )


def _name_pools(names: list[_Names], spell: Callable[[str], str]) -> tuple[list[list[str]], list[list[str]]]:
    return [[spell(name) for name in of.first] for of in names], [[spell(name) for name in of.last] for of in names]


def terminal_details(ids: Ids, seed: int = 0) -> pa.Table:
    """Return name, country and merchant category of terminals, which depend on the id and the seed alone.

    Parameters
    ----------
    ids
        Terminals, shape (n,).
    seed
        Of the simulation.

    Returns
    -------
    Table of terminal_id, terminal_name, country, category.
    """
    country = _country("terminal", ids, seed)
    names = [_names(locale, seed) for _, _, locale in COUNTRIES]
    company = _from_pools([of.companies for of in names], country, _draw(seed, "company", ids))
    city = _from_pools([of.cities for of in names], country, _draw(seed, "city", ids))
    return pa.table(
        {
            "terminal_id": ids,
            "terminal_name": pc.binary_join_element_wise(company, city, " "),
            "country": pc.take(pa.array([code for code, _, _ in COUNTRIES]), pa.array(country)),
            "category": pc.take(pa.array(list(CATEGORIES)), pa.array(_category(ids, seed))),
        }
    )


def _category(terminal_ids: Ids, seed: int) -> Ids:
    return _choose(tuple(CATEGORIES.values()), _draw(seed, "category", terminal_ids))


def transaction_details(transaction_ids: Ids, customer_ids: Ids, terminal_ids: Ids, seed: int = 0) -> pa.Table:
    """Return currency, channel and device of transactions, which depend on the three ids and the seed alone.

    The channel goes with the terminal's category, the device with the channel and the customer's own devices.

    Parameters
    ----------
    transaction_ids, customer_ids, terminal_ids
        Each of shape (n,).
    seed
        Of the simulation.

    Returns
    -------
    Table of currency, channel, device; the device is null where an order came by phone.
    """
    cumulative = np.cumsum([CHANNELS_OF.get(category, IN_STORE) for category in CATEGORIES], axis=1)
    uniform = _draw(seed, "channel", transaction_ids)
    thresholds = cumulative[_category(terminal_ids, seed)]
    channel = sum((uniform >= thresholds[:, place]).astype(np.int64) for place in range(len(CHANNELS) - 1))
    phone = 1 + _choose((0.65, 0.35), _draw(seed, "phone", customer_ids))
    computer = 1 + len(PHONES) + _choose((0.72, 0.22, 0.06), _draw(seed, "computer", customer_ids))
    uniform = _draw(seed, "device", transaction_ids)
    device = np.select(
        [channel == CHANNELS.index("contactless"), channel == CHANNELS.index("online")],
        [np.where(uniform < 0.4, phone, 0), np.where(uniform < 0.6, phone, computer)],
        0,
    )
    return pa.table(
        {
            "currency": pa.repeat(pa.scalar("EUR"), len(transaction_ids)),
            "channel": pc.take(pa.array(CHANNELS), pa.array(channel)),
            "device": pc.take(pa.array(DEVICES), pa.array(device, mask=channel == CHANNELS.index("phone"))),
        }
    )


# --- The world -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """What stands before the first transaction: who is where, and who falls victim when."""

    mean_amount: Floats
    mean_count: Floats
    customer_since: Ids
    terminal_since: Ids
    near_start: Ids
    near_count: Ids
    near: Ids
    is_compromised: NDArray[np.bool_]
    is_leaked: NDArray[np.bool_]


def _since(of: Simulation, count: int, a_day: int) -> Ids:
    """Return the day on which each customer or terminal begins: at the start, or new with an increment."""
    new = np.repeat(np.arange(of.first_increment, of.days), a_day)
    return np.concatenate([np.zeros(count, np.int64), new])


def _near(of: Simulation, customer_ids: Ids, terminal_ids: Ids) -> tuple[Ids, Ids, Ids]:
    """Return the terminals within the radius of each customer, one list after the other, with starts and counts."""
    x, y = _location("terminal", terminal_ids, of.seed)
    cells = int(SIDE // of.radius) + 1
    column, row = (x // of.radius).astype(np.int64), (y // of.radius).astype(np.int64)
    by_cell = np.argsort(column * cells + row, kind="stable")
    cell = (column * cells + row)[by_cell]
    own_x, own_y = _location("customer", customer_ids, of.seed)
    own_column, own_row = (own_x // of.radius).astype(np.int64), (own_y // of.radius).astype(np.int64)
    customers, candidates = [], []
    # The three cells of a column lie side by side in the order of cells.
    for shift in (-1, 0, 1):
        here = own_column + shift
        is_inside = (here >= 0) & (here < cells)
        first = np.searchsorted(cell, here * cells + np.maximum(own_row - 1, 0), side="left")
        last = np.searchsorted(cell, here * cells + np.minimum(own_row + 1, cells - 1), side="right")
        count = np.where(is_inside, last - first, 0)
        customers.append(np.repeat(customer_ids, count))
        candidates.append(by_cell[_ranges(first, count)])
    customer, terminal = np.concatenate(customers), np.concatenate(candidates)
    is_near = (x[terminal] - own_x[customer]) ** 2 + (y[terminal] - own_y[customer]) ** 2 < of.radius**2
    customer, terminal = customer[is_near], terminal[is_near]
    order = np.lexsort((terminal, customer))
    count = np.bincount(customer, minlength=len(customer_ids))
    return np.cumsum(count) - count, count, terminal[order]


def _ranges(first: Ids, count: Ids) -> Ids:
    """Return first[0], first[0] + 1, ... of each range, one range after the other."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count, count) + np.repeat(first, count)


def _victims(of: Simulation, what: str, since: Ids, a_day: int, days: int) -> NDArray[np.bool_]:
    """Return who of those that began is a victim on which day, shape (days, len(since))."""
    is_victim = np.zeros((of.last_day, len(since)), np.bool_)
    for day in range(of.last_day):
        begun = np.flatnonzero(since <= day)
        drawn = _draw(of.seed, what, begun, np.full(len(begun), day))
        is_victim[day : day + days, begun[np.argsort(drawn, kind="stable")[:a_day]]] = True
    return is_victim


def _world(of: Simulation) -> _World:
    customer_since = _since(of, of.customers, of.new_customers_a_day)
    terminal_since = _since(of, of.terminals, of.new_terminals_a_day)
    customer_ids, terminal_ids = np.arange(len(customer_since)), np.arange(len(terminal_since))
    start, count, near = _near(of, customer_ids, terminal_ids)
    return _World(
        mean_amount=5 + 95 * _draw(of.seed, "mean amount", customer_ids),
        mean_count=4 * _draw(of.seed, "mean count", customer_ids),
        customer_since=customer_since,
        terminal_since=terminal_since,
        near_start=start,
        near_count=count,
        near=near,
        is_compromised=_victims(of, "compromised", terminal_since, COMPROMISED_TERMINALS_A_DAY, COMPROMISED_DAYS),
        is_leaked=_victims(of, "leaked", customer_since, LEAKED_CUSTOMERS_A_DAY, LEAKED_DAYS),
    )


# --- Transactions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transactions:
    """Transactions of some days in the order of time; every array has shape (n,).

    `amount` and `first_amount` are cents; the first one was booked on `arrived_on` and corrected on `corrected_on` (days; where
    nothing was corrected, a day after all others). `scenario` is 0 for a genuine transaction.
    """

    transaction_id: Ids
    customer_id: Ids
    terminal_id: Ids
    transacted_at: Ids
    amount: Ids
    first_amount: Ids
    scenario: Ids
    arrived_on: Ids
    corrected_on: Ids
    reported_at: Ids
    is_reported: NDArray[np.bool_]


def transactions(of: Simulation, days_at_once: int | None = None) -> Iterator[tuple[int, Transactions]]:
    """Yield the transactions of all days, some days at a time, each with the day after its last.

    Parameters
    ----------
    of
        What to simulate.
    days_at_once
        Days of one piece; by default so many that memory stays below about half a gigabyte. It does not change the outcome.
    """
    world = _world(of)
    step = days_at_once or max(1, 400_000 // max(1, 2 * len(world.customer_since)))
    next_id = 0
    for first in range(0, of.last_day, step):
        last = min(first + step, of.last_day)
        piece = _piece(of, world, first, last, next_id)
        next_id += len(piece.transaction_id)
        yield last, piece


def _piece(of: Simulation, world: _World, first: int, last: int, next_id: int) -> Transactions:
    customer = np.repeat(np.arange(len(world.customer_since)), last - first)
    day = np.tile(np.arange(first, last), len(world.customer_since))
    count = _poisson(world.mean_count[customer], _draw(of.seed, "count", customer, day))
    count[(day < world.customer_since[customer]) | (world.near_count[customer] == 0)] = 0
    customer, day, occurrence = np.repeat(customer, count), np.repeat(day, count), _ranges(np.zeros_like(count), count)
    # One hash stands for the transaction in all further draws, its id being known only when all are sorted by time.
    key = _hash(of.seed, "transaction", customer, day, occurrence).view(np.int64)
    time = np.floor((43_200 + 20_000 * _normal(of.seed, "time", key)) * 1e6)
    choice = (_draw(of.seed, "terminal", key) * world.near_count[customer]).astype(np.int64)
    terminal = world.near[world.near_start[customer] + choice]
    happens = (time > 0) & (time < DAY_MICROSECONDS) & (day >= world.terminal_since[terminal])
    order = np.flatnonzero(happens)
    order = order[np.lexsort((key[order], time[order], day[order]))]
    customer, day, key, terminal, time = customer[order], day[order], key[order], terminal[order], time[order].astype(np.int64)

    mean = world.mean_amount[customer]
    amount = mean + mean / 2 * _normal(of.seed, "amount", key)
    amount = np.where(amount < 0, 2 * mean * _draw(of.seed, "other amount", key), amount)
    cents = np.rint(100 * amount).astype(np.int64)
    scenario = np.where(cents > LARGE_AMOUNT_CENTS, 1, 0)
    scenario[world.is_compromised[day, terminal]] = 2
    is_taken = world.is_leaked[day, customer] & (_draw(of.seed, "leak", key) < LEAKED_SHARE)
    cents[is_taken] *= LEAKED_FACTOR
    scenario[is_taken] = 3

    late = _draw(of.seed, "late", key)
    arrived_on = day + np.where(late < of.late_share, 1 + np.floor(3 * late / max(of.late_share, 1e-9)).astype(np.int64), 0)
    correction = _draw(of.seed, "correction", key)
    is_corrected = correction < of.corrected_share
    after = 1 + np.floor(5 * correction / max(of.corrected_share, 1e-9)).astype(np.int64)
    first_amount = np.where(is_corrected, np.rint(cents * (0.5 + _draw(of.seed, "first amount", key))).astype(np.int64), cents)
    transacted_at = of.midnight(0) + day * DAY_MICROSECONDS + time
    delay = REPORT_DELAY_DAYS + of.report_spread_days * _draw(of.seed, "report delay", key)
    return Transactions(
        transaction_id=next_id + np.arange(len(key)),
        customer_id=customer,
        terminal_id=terminal,
        transacted_at=transacted_at,
        amount=cents,
        first_amount=first_amount,
        scenario=scenario,
        arrived_on=arrived_on,
        corrected_on=np.where(is_corrected, arrived_on + after, of.last_day + 1),
        reported_at=transacted_at + np.rint(delay * DAY_MICROSECONDS).astype(np.int64),
        is_reported=(scenario > 0) | (_draw(of.seed, "confirmed genuine", key) < of.genuine_share),
    )


# --- Files -----------------------------------------------------------------------------------------------------------------


def decimals(cents: Ids) -> pa.Array:
    """Return cents as decimal(12,2), without passing through a float."""
    words = np.stack([cents.astype("<i8"), cents.astype("<i8") >> 63], axis=1)
    return pa.Array.from_buffers(pa.decimal128(12, 2), len(cents), [None, pa.py_buffer(np.ascontiguousarray(words))])


def transaction_rows(transaction_ids: Ids, customer_ids: Ids, terminal_ids: Ids, transacted_at: Ids, cents: Ids, seed: int = 0) -> pa.Table:
    """Return rows of transactions.csv; times are microseconds since 1970."""
    details = transaction_details(transaction_ids, customer_ids, terminal_ids, seed)
    columns = [transaction_ids, customer_ids, terminal_ids, pa.array(transacted_at, pa.timestamp("us", "UTC")), decimals(cents)]
    return pa.Table.from_arrays([*map(pa.array, columns), *details.columns], schema=TRANSACTIONS)


def report_rows(transaction_ids: Ids, reported_at: Ids, is_fraud: NDArray[np.bool_], scenario: Ids) -> pa.Table:
    """Return rows of fraud_reports.csv; scenario 0 stands for an unknown one."""
    known_scenario = pa.array(scenario, pa.int16(), mask=~is_fraud | (scenario <= 0))
    columns = [transaction_ids, pa.array(reported_at, pa.timestamp("us", "UTC")), is_fraud, known_scenario]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=REPORTS)


def _spelled(rows: pa.Table) -> pa.Table:
    """Return rows with times as text: Arrow's own writer takes fifteen times longer for times with a zone."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            plain = rows.column(place).cast(pa.timestamp("us")).cast(pa.string())
            rows = rows.set_column(place, field.name, pc.binary_join_element_wise(plain, "Z", ""))
    return rows


class CsvFile:
    """A CSV file that is written piece by piece; it begins to exist with its first row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pyarrow.csv.CSVWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        if not rows.num_rows:
            return
        rows = _spelled(rows)
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Names may hold commas and quotes, nothing else does; without quotes a file is smaller and loads faster.
            quoting = "needed" if {"customer_name", "terminal_name"} & set(rows.schema.names) else "none"
            options = pyarrow.csv.WriteOptions(quoting_style=quoting)
            self._writer = pyarrow.csv.CSVWriter(self._path, rows.schema, write_options=options)
        self._writer.write_table(rows)

    def close(self) -> None:
        """Write what is still held in memory."""
        if self._writer is not None:
            self._writer.close()


def write_csv(rows: pa.Table, path: Path) -> None:
    """Write one CSV file, its folder too; no rows, no file."""
    with closing(CsvFile(path)) as file:
        file.write(rows)


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes its place only when all is written; what an earlier run wrote is replaced.

    Raises
    ------
    RefusedError
        When the folder holds anything else than `full`, `incremental` and `stream.csv`.
    """
    if folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - {"full", "incremental", "stream.csv"}):
        raise RefusedError(f"{folder} holds other files, which would be lost; name a new or an empty folder with --out")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@dataclass(frozen=True)
class Written:
    """What was written: rows of the full load, of the increments and of the stream, and how many transactions are fraud."""

    customers: int
    terminals: int
    transactions: int
    fraud_reports: int
    incremental_transactions: int
    stream_transactions: int
    frauds: int


def write(of: Simulation, folder: Path, progress: Progress | None = None, days_at_once: int | None = None) -> Written:
    """Write the files of a simulation.

    `full/<table>.csv` holds what the source knew before the first increment; `incremental/<date>/<table>.csv` what arrived or
    changed on that day: new customers and terminals, changed addresses, transactions of the day and late ones, corrected amounts,
    reports made that day; `stream.csv` the transactions after the last increment, in the order of time.

    Parameters
    ----------
    of
        What to simulate.
    folder
        Where to write; see `output_folder`.
    progress
        Shows the days.
    days_at_once
        See `transactions`.
    """
    increments: dict[int, list[pa.Table]] = {day: [] for day in range(of.first_increment, of.days)}
    reports: list[pa.Table] = []
    full_rows = late_rows = stream_rows = frauds = 0
    task = progress.add_task("simulating days", total=of.last_day) if progress else None
    with output_folder(folder) as partial:
        with closing(CsvFile(partial / "full" / "transactions.csv")) as full_file:
            stream: list[pa.Table] = []
            for last, piece in transactions(of, days_at_once):
                frauds += int(np.count_nonzero(piece.scenario))
                is_stream = piece.transacted_at >= of.midnight(of.days)
                is_full = ~is_stream & (piece.arrived_on < of.first_increment)
                full = _state(of, piece, is_full, of.first_increment - 1)
                full_file.write(full)
                full_rows += full.num_rows
                if is_stream.any():
                    stream.append(_state(of, piece, is_stream, of.last_day))
                    stream_rows += stream[-1].num_rows
                for day, arrivals in increments.items():
                    is_new = ~is_stream & ((piece.arrived_on == day) | (piece.corrected_on == day))
                    if is_new.any():
                        arrivals.append(_state(of, piece, is_new, day))
                which = piece.is_reported
                scenario = piece.scenario[which]
                reports.append(report_rows(piece.transaction_id[which], piece.reported_at[which], scenario > 0, scenario))
                if progress and task is not None:
                    progress.update(task, completed=last)
        if stream:
            write_csv(pa.concat_tables(stream), partial / "stream.csv")
        customers, terminals = _write_customers(of, partial)
        in_full = _write_reports(of, pa.concat_tables(reports), partial)
        for day, arrivals in increments.items():
            if arrivals:
                rows = pa.concat_tables(arrivals)
                late_rows += rows.num_rows
                write_csv(rows, _increment(of, partial, day) / "transactions.csv")
    return Written(customers, terminals, full_rows, in_full, late_rows, stream_rows, frauds)


def _state(of: Simulation, piece: Transactions, which: NDArray[np.bool_], day: int) -> pa.Table:
    """Return transactions as the source holds them at the end of a day."""
    cents = np.where(piece.corrected_on <= day, piece.amount, piece.first_amount)
    if day >= of.last_day:
        cents = piece.amount
    return transaction_rows(
        piece.transaction_id[which], piece.customer_id[which], piece.terminal_id[which], piece.transacted_at[which], cents[which], of.seed
    )


def _increment(of: Simulation, folder: Path, day: int) -> Path:
    return folder / "incremental" / (of.start + dt.timedelta(days=day)).isoformat()


def _write_customers(of: Simulation, folder: Path) -> tuple[int, int]:
    customer_since, terminal_since = (
        _since(of, count, a_day) for count, a_day in ((of.customers, of.new_customers_a_day), (of.terminals, of.new_terminals_a_day))
    )
    versions = np.zeros(len(customer_since), np.int64)
    in_full = [np.flatnonzero(since < of.first_increment) for since in (customer_since, terminal_since)]
    write_csv(customer_details(in_full[0], of.seed), folder / "full" / "customers.csv")
    write_csv(terminal_details(in_full[1], of.seed), folder / "full" / "terminals.csv")
    for day in range(of.first_increment, of.days):
        known = np.flatnonzero(customer_since < day)
        changed = known[_draw(of.seed, "new address", known, np.full(len(known), day)) < of.changed_customers_share]
        versions[changed] += 1
        rows = np.concatenate([changed, np.flatnonzero(customer_since == day)])
        into = _increment(of, folder, day)
        write_csv(customer_details(rows, of.seed, versions[rows]), into / "customers.csv")
        write_csv(terminal_details(np.flatnonzero(terminal_since == day), of.seed), into / "terminals.csv")
    return len(in_full[0]), len(in_full[1])


def _write_reports(of: Simulation, reports: pa.Table, folder: Path) -> int:
    reported_at = reports["reported_at"].cast(pa.int64()).to_numpy()
    full = reports.filter(pa.array(reported_at < of.midnight(of.first_increment)))
    write_csv(full, folder / "full" / "fraud_reports.csv")
    for day in range(of.first_increment, of.days):
        is_of_day = (reported_at >= of.midnight(day)) & (reported_at < of.midnight(day + 1))
        write_csv(reports.filter(pa.array(is_of_day)), _increment(of, folder, day) / "fraud_reports.csv")
    return full.num_rows


def main() -> int:
    """Run the verb `bash/simulate.sh`."""
    default = Simulation()
    parser = argparse.ArgumentParser(prog="bash/simulate.sh", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=settings().data_dir / "simulated", help="folder for the files")
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same files")
    parser.add_argument("--start", type=dt.date.fromisoformat, default=default.start, help="first day")
    parser.add_argument("--days", type=int, default=default.days, help="days, those of the increments included")
    parser.add_argument("--customers", type=int, default=default.customers, help="customers at the start")
    parser.add_argument("--terminals", type=int, default=default.terminals, help="terminals at the start")
    parser.add_argument("--incremental-days", type=int, default=default.incremental_days, help="last days that come as increments")
    parser.add_argument("--stream-days", type=int, default=default.stream_days, help="days after them that come as a stream")
    parser.add_argument(
        "--report-spread-days", type=float, default=default.report_spread_days, help="reports come 7 to 7 + this many days later"
    )
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    of = Simulation(**arguments)
    if not 0 <= of.incremental_days < of.days:
        raise RefusedError(f"--incremental-days {of.incremental_days} leaves no day for the full load of --days {of.days}; give fewer")
    if min(of.customers, of.terminals) < 10 or min(of.stream_days, of.report_spread_days) < 0:
        raise RefusedError("at least 10 customers and 10 terminals are needed, and no number may be negative; correct the options")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        written = write(of, out, progress)
    logger.info("simulated", folder=str(out), **vars(written))
    return 0


if __name__ == "__main__":
    run_main(main)
