"""What `bash/stream_csv.sh` makes of a file, and how it speaks to the API."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from api import replay
from api.replay import Sent
from api.transaction import Transaction
from etl import ops, simulator
from etl.card_numbers import mask_card_numbers
from etl.errors import RefusedError, UnavailableError
from etl.settings import settings

HEADER = ",transaction_id,customer_id,terminal_id,transacted_at,amount,currency,channel,device\n"
CARD = "4111 1111 1111 1111"


def of(folder: Path, content: str | bytes) -> list[Sent | ops.Reject]:
    path = folder / "stream.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(replay.replayed(path))


def keys(rows: list[Sent | ops.Reject]) -> list[int]:
    return [row.transaction.transaction_id for row in rows if isinstance(row, Sent)]


def reasons(rows: list[Sent | ops.Reject]) -> list[tuple[int | None, str | None, str]]:
    return [(row.line, row.column_name, row.reason) for row in rows if isinstance(row, ops.Reject)]


def test_a_line_becomes_a_transaction_without_its_unnamed_columns(tmp_path: Path):
    header = "Unnamed: 0,transaction_id,customer_id,terminal_id,transacted_at,amount,currency,channel,device,\n"
    (row,) = of(tmp_path, header + "0,17,0,7,2018-04-01 02:00:31+02:00,57.16,EUR,chip,,x\n")
    assert isinstance(row, Sent)
    assert replay.encoded(row.transaction) == (
        b'{"transaction_id":17,"customer_id":0,"terminal_id":7,"transacted_at":"2018-04-01T00:00:31Z",'
        b'"amount":"57.16","currency":"EUR","channel":"chip"}'
    )


def test_a_time_without_a_zone_is_utc_and_a_missing_one_is_left_to_the_arrival(tmp_path: Path):
    rows = of(tmp_path, HEADER + "0,1,1,7,2018-04-01T00:00:31.000001,1,EUR,chip,\n1,2,1,7,,1,EUR,chip,\n")
    given, missing = (row.transaction for row in rows if isinstance(row, Sent))
    assert given.transacted_at == dt.datetime(2018, 4, 1, 0, 0, 31, 1, tzinfo=dt.UTC)
    assert b"transacted_at" not in replay.encoded(missing)


def test_a_line_without_an_id_gets_the_same_one_in_a_second_run_and_in_a_file_that_has_grown(tmp_path: Path):
    lines = HEADER + "0,,1,7,,1,EUR,chip,\n1,,1,7,,1,EUR,chip,\n"
    first = keys(of(tmp_path, lines))
    assert first == keys(of(tmp_path, lines.removesuffix("\n")))
    grown = keys(of(tmp_path, lines + "2,,1,7,,1,EUR,chip,\n"))
    assert grown[:2] == first
    assert len(set(grown)) == 3
    other_header = HEADER.replace("transaction_id,customer_id", "customer_id,transaction_id")
    assert set(first).isdisjoint(keys(of(tmp_path, other_header + "0,1,,7,,1,EUR,chip,\n1,1,,7,,1,EUR,chip,\n")))


def test_a_mended_line_and_one_that_is_gone_leave_the_ids_of_the_others_as_they_were(tmp_path: Path):
    good, other, wrong = ",,1,7,,1,EUR,chip,\n", ",,1,7,,2,EUR,chip,\n", ",,1,7,,1.005,EUR,chip,\n"
    before = keys(of(tmp_path, HEADER + good + wrong + other + good))
    assert len(set(before)) == 3
    mended = keys(of(tmp_path, HEADER + good + wrong.replace("1.005", "1.05") + other + good))
    assert [mended[0], *mended[2:]] == before
    assert mended[1] not in before
    assert keys(of(tmp_path, HEADER + good + other + good)) == before


def test_a_made_id_is_above_those_of_a_booking_system_and_never_like_a_card_number():
    made = [replay.key_of(hashlib.blake2b(str(number).encode(), digest_size=8).digest()) for number in range(2000)]
    assert min(made) >= 2**62
    assert max(made) < 2**63
    assert len(set(made)) == 2000
    assert [key for key in made if mask_card_numbers(str(key)) != str(key)] == []
    # 2^63 - 1 itself passes Luhn's check: the next one is looked for from the lower end.
    assert 2**62 <= replay.key_of(b"\xff" * 8) < 2**63


def test_a_bad_line_is_a_reject_with_its_reason_and_the_others_pass(tmp_path: Path):
    rows = of(
        tmp_path,
        HEADER.encode()
        + b"0,1,1,7,,1,EUR,chip,\n"
        + b"1,2,1,7,,1,EUR\n"
        + b'2,3,1,7,,1,EUR,chip,"card\n'
        + b"3,4,1,7,,1,EUR,chip,\xff\n"
        + b"\n"
        + b"5,6,one,7,,1,EUR,chip,\n"
        + b"6,7,1,7,,1.005,EUR,chip,\n"
        + b"7,8,1,7,2018-13-01T00:00:00,1,EUR,chip,\n"
        + b"8,9,1,7,,1,EUR,chip," + b"x" * 70_000 + b"\n"
        + b"9,10,1,7,,1,EUR,chip,card\n",
    )  # fmt: skip
    assert keys(rows) == [1, 10]
    assert reasons(rows) == [
        (3, None, "has 7 fields, the header has 9"),
        (4, None, "is not CSV: a quote is not closed, or stands inside a field"),
        (5, None, "is not UTF-8"),
        (7, "customer_id", "Input should be a valid integer"),
        (8, "amount", "has more than two decimal places"),
        (9, "transacted_at", "Input should be a valid datetime or date, month value is outside expected range of 1-12"),
        (10, None, "is too long"),
    ]


def test_a_card_number_is_refused_and_masked_where_it_is_told(tmp_path: Path):
    rows = of(tmp_path, HEADER + f"0,1,1,7,,1,EUR,chip,{CARD}\n1,{CARD.replace(' ', '')},1,7,,1,EUR,chip,\n")
    assert [row.column_name for row in rows if isinstance(row, ops.Reject)] == ["device", "transaction_id"]
    assert "1111" not in repr(rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "missing: amount, channel, currency, customer_id, terminal_id"),
        ("customer_id,terminal_id,amount,currency,channel,pan\n", "unknown: pan"),
        (f"customer_id,terminal_id,amount,currency,channel,{CARD}\n", r"unknown: \*"),
        ("customer_id,terminal_id,amount,currency,channel,amount\n", "none twice"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, content: str, words: str):
    with pytest.raises(RefusedError, match=words):
        of(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(RefusedError, match="cannot be read: No such file"):
        list(replay.replayed(tmp_path / "none.csv"))


def test_generated_transactions_are_of_now_and_new_in_every_run():
    bank = simulator.Simulation(customers=50, terminals=50, radius=50.0, days=2, incremental_days=0, stream_days=0)
    runs = [[row for _, row in zip(range(500), replay.generated(bank), strict=False)] for _ in range(2)]
    made = [row.transaction for run in runs for row in run if isinstance(row, Sent)]
    assert len({one.transaction_id for one in made}) == 1000
    assert all(one.transacted_at is not None and dt.datetime.now(dt.UTC) - one.transacted_at < dt.timedelta(minutes=1) for one in made)
    assert {one.customer_id for one in made} <= set(range(50))


def some(count: int) -> list[Sent | ops.Reject]:
    return [
        Sent(Transaction(transaction_id=key, customer_id=1, terminal_id=7, amount="1.00", currency="EUR", channel="chip"), key + 1, "")
        for key in range(1, count + 1)
    ]


def test_pieces_are_full_where_no_rate_is_asked_for():
    assert [len(piece) for piece in replay.batches(some(1200), None, threading.Event())] == [500, 500, 200]


def test_a_rate_is_kept_and_what_is_gathered_goes_out_twice_a_second():
    begun = time.monotonic()
    sizes = [len(piece) for piece in replay.batches(some(60), 40.0, threading.Event())]
    # The last of 60 is due after 59 / 40 seconds.
    assert time.monotonic() - begun >= 1.47
    assert sum(sizes) == 60
    assert len(sizes) >= 2


def test_a_stop_sends_what_is_gathered():
    stop = threading.Event()
    threading.Timer(0.25, stop.set).start()
    sizes = [len(piece) for piece in replay.batches(some(1000), 20.0, stop)]
    assert len(sizes) == 1
    assert 1 <= sizes[0] <= 10


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[tuple[dict[str, str], bytes]]]]:
    """Start a receiver that gives the answers it is told, one a request; returns what it got."""
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: tuple[int, dict[str, str], object]) -> list[tuple[dict[str, str], bytes]]:
        got: list[tuple[dict[str, str], bytes]] = []
        left = iter(answers)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
                status, headers, body = next(left)
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        key = tmp_path / "api.key"
        key.write_text("a-key\n")
        monkeypatch.setenv("WAREHOUSE_API_KEY_FILE", str(key))
        monkeypatch.setenv("WAREHOUSE_API_PORT", str(server.server_port))
        monkeypatch.setenv("WAREHOUSE_PORT_OFFSET", "0")
        settings.cache_clear()
        return got

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    settings.cache_clear()


def batch(count: int) -> list[Sent]:
    return [row for row in some(count) if isinstance(row, Sent)]


def test_the_api_is_asked_again_when_it_says_later(api: Callable[..., list[tuple[dict[str, str], bytes]]]):
    told = {"accepted": [1, 2], "rejected": []}
    got = api((503, {"Retry-After": "1"}, {}), (429, {"Retry-After": "0"}, {}), (202, {}, told))
    begun = time.monotonic()
    assert replay.Api(threading.Event()).send(batch(2)) == []
    assert time.monotonic() - begun > 1
    assert len({content for _, content in got}) == 1
    assert len(got) == 3
    assert [json.loads(line)["transaction_id"] for line in got[0][1].splitlines()] == [1, 2]
    assert got[0][0]["Authorization"] == "Bearer a-key"


def test_what_the_api_does_not_accept_comes_back_with_its_reason(api: Callable[..., list[tuple[dict[str, str], bytes]]]):
    fault = {"line": 2, "field": "transacted_at", "reason": "lies more than a day ahead"}
    api((202, {}, {"accepted": [1], "rejected": [fault]}), (422, {}, {"status": 422, "errors": [{**fault, "line": 1}]}))
    receiver = replay.Api(threading.Event())
    for size, key in ((2, 2), (1, 1)):
        (refused,) = receiver.send(batch(size))
        assert (refused[0].transaction.transaction_id, refused[1]) == (key, "transacted_at: lies more than a day ahead")


def test_a_refused_key_is_told_at_once(api: Callable[..., list[tuple[dict[str, str], bytes]]]):
    api((401, {}, {}))
    with pytest.raises(RefusedError, match="answers 401: the key"):
        replay.Api(threading.Event()).send(batch(1))


def test_an_api_that_is_away_ends_with_a_clear_sentence_once_stopped(
    api: Callable[..., list[tuple[dict[str, str], bytes]]], monkeypatch: pytest.MonkeyPatch
):
    api()
    monkeypatch.setenv("WAREHOUSE_API_PORT", "1")
    settings.cache_clear()
    stop = threading.Event()
    stop.set()
    with pytest.raises(UnavailableError, match=r"does not answer \(ConnectionRefusedError\); run the same command again"):
        replay.Api(stop).send(batch(1))
