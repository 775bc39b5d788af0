"""The running API, its broker away: who may ask, what is refused and how, and that nothing of it is repeated."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api import connection
from tests.api.server import GOOD, Answer, Api, free_port, running

CARD = "4111111111111111"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api"), WAREHOUSE_KAFKA_PORT=str(free_port()), WAREHOUSE_PORT_OFFSET="0") as one:
        yield one


def problem(answer: Answer) -> tuple[int, str]:
    """Status and detail of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.told
    assert {"type", "title", "status", "detail"} <= told.keys() <= {"type", "title", "status", "detail", "errors"}
    assert told["status"] == answer.status
    return answer.status, told["detail"]


def test_without_a_broker_it_lives_but_is_not_ready_and_takes_nothing(api: Api):
    assert api.ask("GET", "/health/live", key=None).status == 200
    for answer in (api.ask("GET", "/health/ready", key=None), api.ask("POST", "/transactions", GOOD)):
        assert problem(answer)[0] == 503
        assert int(answer.headers["retry-after"]) >= 1


def test_who_may_not_is_told_so(api: Api):
    nobody = api.ask("POST", "/transactions", GOOD, key=None)
    assert (problem(nobody)[0], nobody.headers["www-authenticate"]) == (401, "Bearer")
    wrong = api.ask("POST", "/transactions", GOOD, key="cf_wrong")
    assert (problem(wrong)[0], wrong.headers["www-authenticate"]) == (401, 'Bearer, error="invalid_token"')
    other = api.add_key(scopes=["metrics"])
    time.sleep(1.1)
    refused = api.ask("POST", "/transactions", GOOD, key=other)
    assert (problem(refused)[0], refused.headers["www-authenticate"]) == (403, 'Bearer error="insufficient_scope", scope="ingest"')
    assert api.ask("GET", "/metrics", key=other).status == 200
    for path in ("/metrics", "/alerts"):
        assert problem(api.ask("GET", path, key=None))[0] == 401


def test_a_path_that_is_not_there_and_a_method_that_is_not_taken(api: Api):
    assert problem(api.ask("GET", f"/transactions/{CARD}?card={CARD}"))[0] == 404
    answer = api.ask("PUT", "/transactions", GOOD)
    assert (problem(answer)[0], answer.headers["allow"]) == (405, "POST")


def test_another_media_type_is_refused(api: Api):
    answer = api.ask("POST", "/transactions", b"a=b", Content_Type="application/x-www-form-urlencoded")
    assert (problem(answer)[0], answer.headers["accept"]) == (415, "application/json, application/x-ndjson")
    assert problem(api.ask("POST", "/alerts/1/decision", b"{}", Content_Type="application/x-ndjson"))[0] == 415


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not(api: Api):
    assert problem(api.ask("POST", "/transactions", b" " * 2_000_001))[0] == 413
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as raw:
        raw.sendall(head(api, "Transfer-Encoding: chunked"))
        raw.sendall(b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as raw:
        raw.sendall(head(api, "Content-Length: 99999999999999999999"))
        assert re.match(rb"HTTP/1.1 4(00|13) ", raw.recv(1000))


def head(api: Api, *lines: str) -> bytes:
    given = ["POST /transactions HTTP/1.1", "Host: x", f"Authorization: Bearer {api.key}", "Content-Type: application/json", *lines]
    return "\r\n".join([*given, "", ""]).encode()


@pytest.mark.slow
def test_a_body_that_does_not_come_ends_the_request_and_nobody_else_waits(api: Api):
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as raw:
        raw.sendall(head(api, "Content-Length: 100") + b"{")
        started = time.monotonic()
        assert api.ask("GET", "/health/live").status == 200
        assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started > 9


def test_a_key_that_is_used_up_waits(api: Api):
    key = api.add_key(rate=0.001, burst=3)
    time.sleep(1.1)
    assert problem(api.ask("POST", "/transactions", [GOOD] * 3, key=key))[0] == 503
    answer = api.ask("POST", "/transactions", GOOD, key=key)
    assert problem(answer)[0] == 429
    assert 900 <= int(answer.headers["retry-after"]) <= 1000
    assert api.ask("GET", "/health/live", key=key).status == 200


@pytest.mark.parametrize("path", ["/health/live", "/docs", "/openapi.json", "/nowhere", "/transactions"])
def test_every_answer_has_the_headers_of_security(api: Api, path: str):
    headers = api.ask("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers


def test_the_page_needs_nothing_from_elsewhere(api: Api):
    answer = api.ask("GET", "/docs", key=None)
    assert b"POST /transactions" in answer.body
    assert not re.search(rb"<script|<link|<img|https?://|@import|style=", answer.body)
    assert "style-src 'sha256-" in answer.headers["content-security-policy"]


def test_the_document_describes_every_route_and_every_reference_is_there(api: Api):
    document = api.ask("GET", "/openapi.json", key=None).told
    assert sorted(document["paths"]) == [
        "/alerts", "/alerts/{transaction_id}/decision", "/health/live", "/health/ready", "/metrics", "/transactions",
    ]  # fmt: skip
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert names == set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (json.dumps({**GOOD, "device": CARD}).encode(), "application/json"),
        (json.dumps({**GOOD, CARD: 1}).encode(), "application/json"),
        (json.dumps([{"transaction_id": int(CARD)}]).encode(), "application/json"),
        (CARD.encode(), "application/json"),
        (f"{CARD}\n{{}}\n".encode(), "application/x-ndjson"),
        (f'{{"device": "{CARD}'.encode(), "application/json"),
        (b"{}", f"text/{CARD}"),
    ],
)
def test_a_card_number_is_in_no_answer_no_log_and_no_metric(api: Api, body: bytes, content: str):
    answer = api.ask("POST", "/transactions", body, Content_Type=content, X_Request_Id=CARD)
    assert 400 <= answer.status < 500
    for path in (f"/{CARD}", f"/alerts?limit={CARD}", f"/alerts?{CARD}=1", f"/alerts/{CARD}x/decision"):
        assert CARD.encode() not in api.ask("POST" if "decision" in path else "GET", path, b"{}").body
    for text in (answer.body.decode(), str(answer.headers), api.log, api.ask("GET", "/metrics").body.decode()):
        assert CARD not in text


def test_a_page_of_alerts_that_cannot_be_is_refused_field_by_field(api: Api):
    answer = api.ask("GET", "/alerts?limit=0&before=yesterday&status=new&x=1")
    assert problem(answer)[0] == 422
    assert [error["field"] for error in answer.told["errors"]] == ["limit", "before", "status", "x"]


def test_a_decision_that_is_none_is_refused(api: Api):
    for body in (b"{", b"{}", b'{"is_fraud": 1}', b'{"is_fraud": true, "scenario": 0}', b'{"is_fraud": true, "x": 1}'):
        assert problem(api.ask("POST", "/alerts/1/decision", body))[0] == 422


def test_requests_are_counted_by_route_not_by_path(api: Api):
    api.ask("POST", "/alerts/77/decision", b"{}")
    counts = api.ask("GET", "/metrics").body.decode()
    assert 'route="/alerts/{transaction_id}/decision"' in counts
    assert "77" not in "".join(re.findall('route="(.*?)"', counts))
    assert "fraud_api_queue_depth 0.0" in counts
    assert "fraud_api_broker_reached 0.0" in counts


def rejected(api: Api) -> float:
    (found,) = re.findall(r"^fraud_api_transactions_rejected_total (\S+)", api.ask("GET", "/metrics").body.decode(), re.MULTILINE)
    return float(found)


@pytest.mark.parametrize(
    ("body", "content", "count"),
    [
        (b"[" + b"{}," * 1_000 + b"{}]", "application/json", 1),
        (b"[{}", "application/json", 1),
        (b" " * 2_000_001, "application/json", 1),
        (b"a,b", "text/csv", 1),
        (b"[{},{},{}]", "application/json", 3),
        (b"{}\n{}", "application/x-ndjson", 2),
    ],
    ids=["too many", "not JSON", "too large", "another type", "three bad ones", "two bad lines"],
)
def test_what_is_refused_is_counted_a_body_refused_as_a_whole_once(api: Api, body: bytes, content: str, count: int):
    before = rejected(api)
    assert api.ask("POST", "/transactions", body, Content_Type=content).status in (413, 415, 422)
    assert rejected(api) == before + count


GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


def connected(api: Api) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.port), timeout=30)


def sent_until_refused(raw: socket.socket, piece: bytes) -> bytes:
    """Send the same again and again until the connection is closed; return what was answered."""
    with contextlib.suppress(OSError):
        for _ in range(100_000_000 // len(piece)):
            raw.sendall(piece)
    with contextlib.suppress(OSError):
        return raw.recv(1000)
    return b""


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (GET, b"a: b\r\n"),
        (GET, b"x: " + b"y" * 997 + b"\r\n"),
        (GET + b"x: ", b"y" * 1_000),
        (GET, b"y" * 1_000),
        (b"GET /", b"y" * 1_000),
        (b"POST /transactions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"a: b\r\n"),
        (b"POST /transactions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ", b"y" * 1_000),
    ],
    ids=["many headers", "large headers", "a value", "a name", "a path", "trailers", "a trailer"],
)
def test_a_head_without_an_end_is_refused_and_fills_no_memory(api: Api, head: bytes, piece: bytes):
    assert api.process is not None
    process = psutil.Process(api.process.pid)
    before = process.memory_info().rss
    with connected(api) as raw:
        raw.sendall(head)
        answer = sent_until_refused(raw, piece)
        # The answer is lost where the client still writes.
        assert answer[:13] in (b"", b"HTTP/1.1 431 ", b"HTTP/1.1 401 ")
    assert process.memory_info().rss - before < 20_000_000
    assert api.ask("GET", "/health/live").status == 200


def test_a_head_of_sixty_kilobytes_is_taken_and_one_of_seventy_is_told_that_it_is_too_large(api: Api):
    for kilobytes, status in ((60, b"200"), (70, b"431")):
        with connected(api) as raw:
            raw.sendall(GET + b"x: " + b"y" * 1024 * kilobytes + b"\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 " + status)


def test_a_body_in_many_small_pieces_is_taken(api: Api):
    with connected(api) as raw:
        raw.sendall(head(api, "Transfer-Encoding: chunked") + b"1\r\n \r\n" * 5_000 + b"0\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 422 ")


def test_requests_that_nobody_waits_for_do_not_pile_up(api: Api):
    with connected(api) as raw:
        raw.sendall((GET + b"\r\n") * 50)
        found = b""
        while found.count(b"HTTP/1.1 200") < 50:
            found += raw.recv(100_000)
    with connected(api) as raw:
        sent_until_refused(raw, (GET + b"\r\n") * 1_000)
    assert api.ask("GET", "/health/live").status == 200


def test_idle_connections_keep_neither_another_address_nor_the_health_checks_out(api: Api):
    with contextlib.ExitStack() as opened:
        many = [opened.enter_context(connected(api)) for _ in range(connection.MOST_CONNECTIONS)]
        started = time.monotonic()
        # From their own address for health only, from another for anything.
        assert api.ask("GET", "/health/live", key=None).status == 200
        refused = api.ask("GET", "/openapi.json")
        assert (problem(refused)[0], refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
        with socket.create_connection(("127.0.0.1", api.port), 30, ("127.0.0.2", 0)) as other:
            other.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - started < 2
        # Whoever was first and speaks is served.
        many[0].sendall(GET + b"\r\n")
        assert many[0].recv(1000).startswith(b"HTTP/1.1 200 ")
        assert many[1].recv(1000).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < connection.IDLE_SECONDS + 2
    assert api.ask("GET", "/openapi.json").status == 200


def test_when_all_places_are_taken_a_silent_connection_makes_way_and_working_ones_do_not(api: Api):
    begun = connection.MOST_OF_ONE - 10
    with contextlib.ExitStack() as opened:

        def open_from(address: str, count: int) -> list[socket.socket]:
            at = ("127.0.0.1", api.port)
            return [opened.enter_context(socket.create_connection(at, 30, (address, 0))) for _ in range(count)]

        working = open_from("127.0.0.2", begun)
        for one in working:
            one.sendall(GET)
        silent = open_from("127.0.0.3", connection.MOST_CONNECTIONS - begun)
        time.sleep(0.2)
        assert api.ask("GET", "/openapi.json").status == 200
        answers = [one for one in silent if select.select([one], [], [], 0)[0]]
        assert len(answers) == 1
        assert answers[0].recv(1000).startswith(b"HTTP/1.1 503 ")
        for one in working:
            one.sendall(b"\r\n")
        assert all(one.recv(1000).startswith(b"HTTP/1.1 200 ") for one in working)


@pytest.mark.slow
def test_a_head_that_does_not_come_is_not_waited_for(api: Api):
    with connected(api) as silent, connected(api) as slow, connected(api) as ends, connected(api) as after:
        started = time.monotonic()
        slow.sendall(GET)
        ends.sendall(b"\r\n")
        # A body that nobody asked for, after the answer.
        after.sendall(GET + b"Content-Length: 1000000\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += after.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200 ")
        while time.monotonic() - started < 9:
            slow.sendall(b"a: b\r\n")
            ends.sendall(b"\r\n")
            after.sendall(b"x")
            time.sleep(1)
        for raw in (silent, slow, ends, after):
            assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert raw.recv(1000) == b""
        assert 9 < time.monotonic() - started < 15
    assert api.ask("GET", "/health/live").status == 200


def test_what_is_not_http_is_refused_and_the_next_is_served(api: Api):
    for wrong in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"POST /transactions HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as raw:
            raw.sendall(wrong)
            answer = raw.recv(1000)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"application/problem+json" in answer
    assert api.ask("GET", "/health/live").status == 200


def test_with_a_certificate_it_speaks_tls_only(tmp_path: Path):
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "chain.pem")]
    subprocess.run([*made, *names], check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "chain.pem"))
    files = {"WAREHOUSE_API_TLS_CERTIFICATE_FILE": str(tmp_path / "chain.pem"), "WAREHOUSE_API_TLS_KEY_FILE": str(tmp_path / "key.pem")}
    with running(tmp_path, is_tls=True, WAREHOUSE_KAFKA_PORT=str(free_port()), WAREHOUSE_PORT_OFFSET="0", **files) as api:
        with urllib.request.urlopen(f"https://localhost:{api.port}/health/live", context=trusted, timeout=30) as answer:
            assert answer.headers["strict-transport-security"]
        with pytest.raises(OSError, match=r"."):
            api.ask("GET", "/health/live")
        checked = subprocess.run([sys.executable, "-m", "api.check"], env=api.environment, check=False)
        assert checked.returncode == 0
        # The stack asks it as well: without a broker it says so, over TLS.
        asked = "from etl.stack.servers import one_server; one_server('api').is_ready()"
        told = subprocess.run([sys.executable, "-c", asked], env=api.environment, check=False, capture_output=True, text=True)
        assert "HTTP Error 503" in told.stderr
