"""Send transactions into the real-time lane: `bash/stream_csv.sh` replays a stream CSV, or lets the simulator produce live.

A line that has no transaction_id gets one from the header, its own content and how many equal lines stand above it. So a second run,
of a file that has grown or in which other lines were mended as well, sends the same ids, which the lane takes for the same
transactions; and the same line further down is another one. Equal lines of two files are taken for one: a time tells them apart.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import hashlib
import http.client
import json
import re
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from api import arrivals, broker
from api.transaction import ONE, Transaction
from etl import ops, simulator
from etl.card_numbers import mask_card_numbers
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import settings

BATCH = 500
FLUSH_SECONDS = 0.5
"""What has been gathered goes out after this long, however little it is."""
SHORT_SECONDS = 0.005
TELL_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
"""How long a receiver may be away before this ends."""
LINE_BYTES = 1 << 16
GENERATED_RATE = 10.0
GENERATED_DAYS = 30
"""Days of the simulation that come one after the other, then again from the first: the bank is ready to go in a second."""
TABLE = "transactions"
KEYS = ("transaction_id", "customer_id", "terminal_id")
NEEDED = {"customer_id", "terminal_id", "amount", "currency", "channel"}
_UNNAMED = re.compile(r"\s*|Unnamed: [0-9]+")
_ZONE = re.compile(r"(?:Z|[+-][0-9]{2}:?[0-9]{2})$", re.IGNORECASE)


@dataclass(frozen=True)
class Sent:
    """A transaction to send, and the line of the file that it stands in; as it stands there for whoever has to look."""

    transaction: Transaction
    line: int
    content: str


class Receiver(Protocol):
    """Where transactions go."""

    def send(self, batch: list[Sent]) -> list[tuple[Sent, str]]:
        """Return when all are acknowledged, with those that were refused and why."""


# --- What is sent ----------------------------------------------------------------------------------------------------------


def key_of(digest: bytes) -> int:
    """Return a transaction's key made from a hash: above all that a booking system counts, and never like a card number."""
    key = 2**62 | int.from_bytes(digest[:8], "big") >> 2
    while mask_card_numbers(str(key)) != str(key):
        key = key + 1 if key < 2**63 - 1 else 2**62
    return key


class Keys:
    """Keys of a file's lines that have none."""

    def __init__(self, header: bytes) -> None:
        self._header = hashlib.blake2b(header, digest_size=8)
        self._seen: Counter[bytes] = Counter()

    def of(self, content: bytes) -> int:
        """Return the key of the next line of this content."""
        digest = self._header.copy()
        digest.update(b"\n" + content)
        line = digest.digest()
        self._seen[line] += 1
        digest.update(b"\n%d" % self._seen[line])
        return key_of(digest.digest())


def _columns(header: bytes, path: Path) -> list[str]:
    """Return the columns of a header, the unnamed ones empty."""
    names = next(csv.reader([header.decode("utf-8-sig", errors="replace")]), [])
    columns = ["" if _UNNAMED.fullmatch(name) else name.strip().lower() for name in names]
    named = [name for name in columns if name]
    unknown = [name for name in named if name not in Transaction.model_fields]
    if unknown or NEEDED - set(named) or len(named) != len(set(named)):
        wrong = (
            f"unknown: {', '.join(map(mask_card_numbers, unknown)) or 'none'}, missing: {', '.join(sorted(NEEDED - set(named))) or 'none'}"
        )
        raise RefusedError(
            f"{path}: its header is not that of a stream ({wrong}, none twice); columns are those of bash/simulate.sh's stream.csv"
        )
    return columns


def _long_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines; of one that is too long the beginning, longer than `LINE_BYTES` by one."""
    while line := file.readline(LINE_BYTES + 1):
        rest = line
        while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LINE_BYTES + 1)
        yield line


def replayed(path: Path) -> Iterator[Sent | ops.Reject]:
    """Yield the lines of a stream CSV as transactions, or as rejects with the reason.

    Parameters
    ----------
    path
        File with a header; its columns are those of a transaction in any order, unnamed ones are left out. Times without a zone
        are UTC, empty fields are absent. A record is one line.

    Raises
    ------
    RefusedError
        When the file cannot be read or its header is that of something else.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}; give a stream CSV") from error
    with file:
        lines = _long_lines(file)
        header = next(lines, b"")
        columns = _columns(header, path)
        keys = Keys(header.rstrip(b"\r\n"))
        for line, content in enumerate(lines, start=2):
            # A last line may still lack its end.
            content = content.rstrip(b"\r\n")
            if content:
                yield _parsed(content, line, columns, keys, path)


def _parsed(content: bytes, line: int, columns: list[str], keys: Keys, path: Path) -> Sent | ops.Reject:
    payload = content.decode(errors="backslashreplace").replace("\0", "\\x00")

    def reject(reason: str, column: str | None = None) -> ops.Reject:
        return ops.Reject(TABLE, str(path), reason, line, None, column, mask_card_numbers(payload)[: arrivals.MAX_PAYLOAD])

    if len(content) > LINE_BYTES:
        return reject("is too long")
    try:
        values = next(csv.reader([content.decode()], strict=True))
    except UnicodeDecodeError:
        return reject("is not UTF-8")
    except csv.Error:
        return reject("is not CSV: a quote is not closed, or stands inside a field")
    if len(values) != len(columns):
        return reject(f"has {len(values)} fields, the header has {len(columns)}")
    row: dict[str, object] = {name: value for name, value in zip(columns, values, strict=True) if name and value}
    for name in KEYS:
        if re.fullmatch("[0-9]{1,19}", str(row.get(name, ""))):
            row[name] = int(str(row[name]))
    if "transaction_id" not in row:
        row["transaction_id"] = keys.of(content)
    if not _ZONE.search(at := str(row.get("transacted_at", "Z"))):
        row["transacted_at"] = at + "Z"
    found = arrivals.parsed(json.dumps(row).encode(), arrivals.Place(0, line, dt.datetime.now(dt.UTC)))
    if isinstance(found, arrivals.Rejected):
        return reject(found.reason, found.column)
    return Sent(found, line, payload)


def generated(of: simulator.Simulation) -> Iterator[Sent]:
    """Yield transactions of a simulated bank without end, each at the moment when it is asked for; every run's are new ones."""
    run = time.time_ns()
    number = 0
    while True:
        for _, day in simulator.transactions(of, days_at_once=1):
            details = simulator.transaction_details(day.transaction_id, day.customer_id, day.terminal_id, of.seed).to_pylist()
            for customer, terminal, cents, detail in zip(day.customer_id, day.terminal_id, day.amount, details, strict=True):
                number += 1
                transaction = Transaction(
                    transaction_id=key_of(hashlib.blake2b(f"{run}/{number}".encode(), digest_size=8).digest()),
                    customer_id=int(customer),
                    terminal_id=int(terminal),
                    transacted_at=dt.datetime.now(dt.UTC),
                    amount=f"{cents // 100}.{cents % 100:02d}",
                    **detail,
                )
                yield Sent(transaction, number, "")


def encoded(transaction: Transaction) -> bytes:
    """Return a transaction as it stands in a topic."""
    if transaction.transacted_at is not None:
        transaction = transaction.model_copy(update={"transacted_at": transaction.transacted_at.astimezone(dt.UTC)})
    return ONE.dump_json(transaction, exclude_none=True)


# --- Where it goes ---------------------------------------------------------------------------------------------------------


class Broker:
    """The topic `transactions`."""

    def __init__(self) -> None:
        self._producer = Producer({**broker.producer(), "linger.ms": 5, "message.timeout.ms": int(PATIENCE_SECONDS * 1000)})

    def send(self, batch: list[Sent]) -> list[tuple[Sent, str]]:
        """Return when the broker has acknowledged all."""
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            for one in batch:
                key = str(one.transaction.customer_id)
                self._producer.produce(broker.TRANSACTIONS, encoded(one.transaction), key, on_delivery=delivered)
            # Short waits: Ctrl-C is heard between them.
            while self._producer.flush(0.5) and not failed:
                pass
        except KafkaException as error:
            failed.append(error.args[0])
        if failed:
            raise UnavailableError(f"the broker at {broker.address()} did not acknowledge: {failed[0].str()}; run the same command again")
        return []


class Api:
    """`POST /transactions`."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._connection: http.client.HTTPConnection
        here = settings()
        # It listens on every address where it is 0.0.0.0.
        host = "127.0.0.1" if here.api_host == "0.0.0.0" else here.api_host  # noqa: S104 - compared, not bound
        if here.api_ca_file or here.api_tls_certificate_file:
            context = _trusting(here.api_ca_file)
            self._connection = http.client.HTTPSConnection(host, here.port("api"), timeout=30, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, here.port("api"), timeout=30)
        path = here.api_key_file or here.data_dir / "secrets" / "api.key"
        if not path.exists():
            raise RefusedError(f"there is no key for the API in {path}; put one there that may post transactions")
        self._headers = {"Authorization": f"Bearer {path.read_text().strip()}", "Content-Type": "application/x-ndjson"}

    def send(self, batch: list[Sent]) -> list[tuple[Sent, str]]:
        """Return when the API has acknowledged all, trying again where it says that it cannot take them now."""
        content = b"\n".join(encoded(one.transaction) for one in batch)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            pause = 1.0
            try:
                self._connection.request("POST", "/transactions", content, self._headers)
                answer = self._connection.getresponse()
                body = answer.read()
            except ssl.SSLCertVerificationError as error:
                raise RefusedError(
                    f"the certificate of the API is not trusted ({error.verify_message}); correct api_ca_file or the certificate"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                problem = f"does not answer ({type(error).__name__})"
            else:
                if answer.status in (202, 422):
                    return _refused(batch, body)
                problem = f"answers {answer.status}"
                if answer.status in (401, 403):
                    raise RefusedError(f"the API {problem}: the key in api_key_file may not post transactions; put another one there")
                if answer.status != 429 and answer.status < 500:
                    raise WarehouseError(f"the API {problem} to a list of {len(batch)} transactions; see its log")
                pause = float(answer.headers.get("Retry-After", pause))
            if self._stop.is_set() or time.monotonic() + pause > deadline:
                raise UnavailableError(f"the API {problem}; run the same command again")
            time.sleep(pause)


def _trusting(authorities: Path | None) -> ssl.SSLContext:
    """Return TLS that trusts some authorities, by default the system's."""
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise RefusedError(f"api_ca_file {authorities} holds no certificates ({error}); name the authority's, PEM") from error


def _refused(batch: list[Sent], body: bytes) -> list[tuple[Sent, str]]:
    """Return what an answer of the API does not accept."""
    told = json.loads(body)
    accepted = set(told.get("accepted", []))
    # A problem document, where none was accepted, has them as `errors`.
    faults = told.get("rejected") or told.get("errors") or []
    reasons = {fault.get("line"): f"{fault['field']}: {fault['reason']}" for fault in faults}
    return [
        (one, mask_card_numbers(reasons.get(place, "")) or "refused by the API")
        for place, one in enumerate(batch, start=1)
        if one.transaction.transaction_id not in accepted
    ]


# --- The way between -------------------------------------------------------------------------------------------------------


def batches(
    rows: Iterable[Sent | ops.Reject], rate: float | None, stop: threading.Event, size: int = BATCH
) -> Iterator[list[Sent | ops.Reject]]:
    """Gather rows, so many a second, into pieces that go out together; a stop ends with what is gathered."""
    begun = opened = time.monotonic()
    batch: list[Sent | ops.Reject] = []
    for count, row in enumerate(rows):
        due = begun + count / rate if rate else 0.0
        if batch and (len(batch) >= size or max(due, time.monotonic()) - opened >= FLUSH_SECONDS):
            yield batch
            batch = []
        # Rows that are due within the same few milliseconds do not wait for one another.
        ahead = due - time.monotonic()
        if stop.wait(ahead) if ahead > SHORT_SECONDS else stop.is_set():
            break
        if not batch:
            opened = time.monotonic()
        batch.append(row)
    if batch:
        yield batch


@dataclass
class Count:
    """How far it came."""

    line: int = 0
    acknowledged: int = 0
    rejected: int = 0


def send(pieces: Iterable[list[Sent | ops.Reject]], receiver: Receiver, run: ops.Run, origin: str, total: int | None = None) -> Count:
    """Send pieces one after the other; bad rows go to ops.rejects with their reasons."""
    count = Count()
    begun = told = time.monotonic()
    outcome = "stopped by a failure"
    try:
        with progress("transactions", total) as shown:
            for piece in pieces:
                good = [row for row in piece if isinstance(row, Sent)]
                rejects = [row for row in piece if isinstance(row, ops.Reject)]
                refused = receiver.send(good) if good else []
                rejects += [
                    ops.Reject(TABLE, origin, reason, one.line, str(one.transaction.transaction_id), None, mask_card_numbers(one.content))
                    for one, reason in refused
                ]
                run.reject(rejects)
                count.acknowledged += len(good) - len(refused)
                count.rejected += len(rejects)
                count.line = max(row.line or 0 for row in piece)
                shown(count.acknowledged + count.rejected, total)
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    logger.info("sending", **vars(count))
        outcome = "sent"
    finally:
        seconds = time.monotonic() - begun
        logger.info(outcome, **vars(count), seconds=round(seconds, 1), per_second=round(count.acknowledged / max(seconds, 0.001)))
    return count


def _stop_on_signals(stop: threading.Event) -> None:
    def first(number: int, _frame: object) -> None:
        stop.set()
        # The next one ends it at once.
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, first)


def main() -> int:
    """Run the verb `bash/stream_csv.sh`."""
    default = simulator.Simulation()
    parser = argparse.ArgumentParser(prog="bash/stream_csv.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("--generate", action="store_true", help="the simulator produces, until it is stopped")
    parser.add_argument("--rate", type=float, help="transactions a second")
    parser.add_argument("--count", type=int, help="end after so many")
    parser.add_argument("--to", choices=("api", "kafka"), default="api")
    parser.add_argument("--seed", type=int, default=default.seed, help="of bash/simulate.sh")
    parser.add_argument("--customers", type=int, default=default.customers, help="of bash/simulate.sh")
    parser.add_argument("--terminals", type=int, default=default.terminals, help="of bash/simulate.sh")
    asked = parser.parse_args()
    if (asked.file is None) == (not asked.generate):
        parser.error("give FILE, or --generate")
    if (asked.rate is not None and asked.rate <= 0) or (asked.count is not None and asked.count <= 0):
        parser.error("--rate and --count are above zero")
    stop = threading.Event()
    receiver: Receiver = Api(stop) if asked.to == "api" else Broker()
    rows: Iterator[Sent | ops.Reject]
    if asked.generate:
        rows = generated(
            simulator.Simulation(
                seed=asked.seed, customers=asked.customers, terminals=asked.terminals, start=dt.datetime.now(dt.UTC).date(),
                days=GENERATED_DAYS,
                incremental_days=0, stream_days=0,
            )
        )  # fmt: skip
    else:
        rows = replayed(asked.file)
    if asked.count:
        rows = (row for _, row in zip(range(asked.count), rows, strict=False))
    _stop_on_signals(stop)
    with ops.run("stream_csv") as run:
        send(
            batches(rows, asked.rate or (GENERATED_RATE if asked.generate else None), stop),
            receiver,
            run,
            str(asked.file or "simulator"),
            asked.count,
        )
    if not stop.is_set():
        return 0
    logger.warning("stopped; what was gathered is sent")
    return 130


if __name__ == "__main__":
    run_main(main)
