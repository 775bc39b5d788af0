"""The API on a real broker: what it acknowledges is in the topic, once, whatever is stopped or killed."""

from __future__ import annotations

import datetime as dt
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from confluent_kafka import Consumer, TopicPartition

from api import broker
from api.transaction import ONE
from etl.sql_server import Session
from etl.stack import control, supervision
from tests.api.server import GOOD, Api, running
from tests.postgres import rows

CARD = "4111111111111111"
IDS = itertools.count(int(time.time() * 1000) % 10**11)


@pytest.fixture(scope="module")
def lane(stack: None) -> None:
    control.up({"base", "kafka", "api"})


@pytest.fixture
def api(lane: None, tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as one:
        one.await_ready()
        yield one


class Topic:
    """What comes into the topic from now on."""

    def __init__(self) -> None:
        self._consumer = Consumer(broker.consumer("test-api"))
        told = self._consumer.list_topics(broker.TRANSACTIONS, 20).topics[broker.TRANSACTIONS]
        self._from = {one: self._consumer.get_watermark_offsets(TopicPartition(broker.TRANSACTIONS, one), 20)[1] for one in told.partitions}

    def read(self) -> list[Any]:
        """Every message since the beginning of the test."""
        places = [TopicPartition(broker.TRANSACTIONS, one, at) for one, at in self._from.items()]
        ends = {one: self._consumer.get_watermark_offsets(TopicPartition(broker.TRANSACTIONS, one), 20)[1] for one in self._from}
        self._consumer.assign(places)
        left = sum(ends[one] - at for one, at in self._from.items())
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while len(found) < left and time.monotonic() < deadline:
            found += self._consumer.consume(min(10_000, left - len(found)), 1.0)
        assert [one.error() for one in found if one.error()] == []
        assert len(found) == left
        return found

    def ids(self) -> Counter[int]:
        """How often each transaction came."""
        return Counter(json.loads(one.value())["transaction_id"] for one in self.read())


@pytest.fixture
def topic(lane: None) -> Topic:
    return Topic()


def new(**others: Any) -> dict[str, Any]:
    return {**GOOD, "transaction_id": next(IDS), **others}


class Load:
    """Clients that post lists one after the other; `accepted` are the ids that were acknowledged to them."""

    def __init__(self, api: Api, clients: int = 4, size: int = 20) -> None:
        self.accepted: list[int] = []
        self.refused: Counter[int] = Counter()
        self._api, self._size, self._stop = api, size, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            batch = [new(customer_id=number) for number in range(self._size)]
            try:
                answer = self._api.ask("POST", "/transactions", batch)
            except OSError:
                # The process is gone: nobody was told anything.
                time.sleep(0.05)
                continue
            except http.client.HTTPException:
                # Nor here: the answer broke off.
                continue
            if answer.status == 202:
                self.accepted += answer.told["accepted"]
            else:
                self.refused[answer.status] += 1
                time.sleep(0.05)

    def await_accepted(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        until, deadline = len(self.accepted) + count, time.monotonic() + 60
        while len(self.accepted) < until:
            assert time.monotonic() < deadline, (len(self.accepted), self.refused, self._api.log)
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_what_is_acknowledged_is_in_the_topic_once_with_its_customer_and_its_arrival(api: Api, topic: Topic):
    sent = new(device="phone", transacted_at="2026-01-02T03:04:05+01:00", amount=12.5)
    answer = api.ask("POST", "/transactions", sent)
    assert answer.status == 202
    assert (answer.told["accepted"], answer.told["timed_on_arrival"], answer.told["rejected"]) == ([sent["transaction_id"]], [], [])
    (message,) = topic.read()
    assert message.key() == b"2"
    received_at = dt.datetime.fromisoformat(answer.told["received_at"])
    assert message.timestamp()[1] == round(received_at.timestamp() * 1000)
    assert json.loads(message.value()) == {
        **sent, "transacted_at": "2026-01-02T02:04:05Z", "amount": "12.50", "device": "phone",
    }  # fmt: skip


def test_a_missing_time_is_that_of_the_message_and_told(api: Api, topic: Topic):
    sent = new()
    told = api.ask("POST", "/transactions", sent).told
    assert told["timed_on_arrival"] == [sent["transaction_id"]]
    (message,) = topic.read()
    assert ONE.validate_json(message.value()).transacted_at is None
    assert dt.datetime.fromtimestamp(message.timestamp()[1] / 1000, dt.UTC) == dt.datetime.fromisoformat(told["received_at"])


def test_the_same_again_gives_the_same_and_the_same_message(api: Api, topic: Topic):
    sent = [new(transacted_at="2026-01-02T03:04:05Z") for _ in range(3)]
    first, second = (api.ask("POST", "/transactions", sent).told for _ in range(2))
    assert first["accepted"] == second["accepted"] == [one["transaction_id"] for one in sent]
    assert set(Counter(one.value() for one in topic.read()).values()) == {2}


@pytest.mark.parametrize("how", ["json", "x-ndjson"])
def test_of_a_list_the_valid_are_in_the_topic_and_the_others_are_told(api: Api, topic: Topic, how: str):
    batch = [new(), new(channel="pigeon"), new(device=f"x {CARD}"), new()]
    body = json.dumps(batch).encode() if how == "json" else b"\n".join(json.dumps(one).encode() for one in batch)
    answer = api.ask("POST", "/transactions", body, Content_Type=f"application/{how}")
    assert answer.status == 202
    good = [batch[0]["transaction_id"], batch[3]["transaction_id"]]
    assert answer.told["accepted"] == good
    name, first = ("index", 0) if how == "json" else ("line", 1)
    assert [(fault[name] - first, fault["field"]) for fault in answer.told["rejected"]] == [(1, "channel"), (2, "device")]
    assert topic.ids() == Counter(good)


POISON = {
    "empty": b"",
    "not JSON": b"transaction_id=1",
    "not UTF-8": b'{"device": "\xff\xfe"}',
    "half a surrogate": b'{"device": "\\ud800"}',
    "deep": b"[" * 500_000,
    "deep objects": b'{"a":' * 50_000,
    "a megabyte of one value": b'{"device": "' + b"x" * 1_000_000 + b'"}',
    "a megabyte of digits": b"1" * 1_000_000,
    "a megabyte of fields": json.dumps({f"f{number}": number for number in range(60_000)}).encode(),
    "a megabyte of nulls": b"[" + b"null," * 200_000 + b"null]",
    "wrong types": json.dumps([new(amount=True), new(customer_id="1"), new(transacted_at=1), new(device=5), [], None]).encode(),
    "numbers out of range": json.dumps([new(customer_id=2**63), new(customer_id=-1), new(amount=10**12), new(amount=0.001)]).encode(),
    "not a number": json.dumps([new(amount=float("nan")), new(amount=float("inf"))]).encode(),
    "unknown fields": json.dumps([new(card=1), new(**{"x" * 1000: 1})]).encode(),
    "a card number": json.dumps([new(device=CARD), new(transaction_id=int(CARD)), new(pan=CARD), new(**{CARD: 1})]).encode(),
    "a card number, escaped": json.dumps(new(device="@")).replace("@", "".join(f"\\u{ord(one):04x}" for one in CARD)).encode(),
}


@pytest.mark.parametrize("name", POISON)
def test_poison_is_refused_and_nothing_of_it_goes_on(api: Api, topic: Topic, name: str):
    started = time.monotonic()
    answer = api.ask("POST", "/transactions", POISON[name])
    assert answer.status in (413, 422)
    assert time.monotonic() - started < 10
    assert CARD not in answer.body.decode() + api.log
    good = new()
    assert api.ask("POST", "/transactions", good).status == 202
    assert topic.ids() == Counter([good["transaction_id"]])


def test_a_rate_is_kept_and_the_client_goes_on_when_it_is_told(api: Api):
    key = api.add_key(rate=20, burst=20)
    time.sleep(1.1)
    batch = [new() for _ in range(20)]
    assert api.ask("POST", "/transactions", batch, key=key).status == 202
    refused = api.ask("POST", "/transactions", batch, key=key)
    assert refused.status == 429
    time.sleep(int(refused.headers["retry-after"]))
    assert api.ask("POST", "/transactions", batch, key=key).status == 202


@pytest.mark.slow
def test_a_key_is_changed_for_another_under_load_without_one_refusal(api: Api, topic: Topic):
    load = Load(api)
    load.await_accepted(100)
    second = api.add_key()
    time.sleep(1.2)
    api.key = second
    load.await_accepted(100)
    load.stop()
    assert load.refused == Counter()
    assert topic.ids() == Counter(load.accepted)


@pytest.mark.slow
def test_a_broker_that_stops_is_told_and_the_api_goes_on_by_itself_when_it_is_back(api: Api, topic: Topic):
    assert api.process is not None
    load = Load(api, clients=8, size=200)
    load.await_accepted(500)
    supervision.call("stopProcess", "kafka")
    try:
        api.await_ready(False)
        started = time.monotonic()
        answer = api.ask("POST", "/transactions", new())
        assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
        assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - started < 10
        before = psutil.Process(api.process.pid).memory_info().rss
        time.sleep(5)
        assert psutil.Process(api.process.pid).memory_info().rss - before < 100 * 2**20
        assert api.ask("GET", "/health/live").status == 200
    finally:
        supervision.call("startProcess", "kafka")
    api.await_ready()
    load.await_accepted(500)
    load.stop()
    assert set(load.refused) == {503}
    # What was not acknowledged may be there: its client was told to send it again.
    found = topic.ids()
    assert set(load.accepted) - set(found) == set()
    assert {count for key, count in found.items() if key in set(load.accepted)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_under_load_loses_nothing_that_was_acknowledged(api: Api, topic: Topic, sign: signal.Signals):
    load = Load(api)
    load.await_accepted(300)
    code = api.stop(sign)
    api.start()
    api.await_ready()
    load.await_accepted(100)
    load.stop()
    found = topic.ids()
    assert set(load.accepted) - set(found) == set()
    assert {found[key] for key in load.accepted} == {1}
    if sign == signal.SIGTERM:
        # Requests under way were answered: what is there was acknowledged.
        assert set(found) - set(load.accepted) == set()
        # uvicorn ends by the signal itself when all is done.
        assert code == -sign


def test_counts_are_those_of_what_was_sent(api: Api):
    api.ask("POST", "/transactions", [new(), new(), new(amount=-1)])
    counts = api.ask("GET", "/metrics").body.decode()
    assert "fraud_api_transactions_accepted_total 2.0" in counts
    assert "fraud_api_transactions_rejected_total 1.0" in counts
    assert 'fraud_api_requests_total{method="POST",route="/transactions",status="202"} 1.0' in counts
    assert "fraud_api_broker_reached 1.0" in counts
    deadline = time.monotonic() + 30
    while not re.search(r'fraud_api_stream_lag{query="scores"} \d', api.ask("GET", "/metrics").body.decode()):
        assert time.monotonic() < deadline
        time.sleep(0.5)


# --- alerts ---------------------------------------------------------------------------------------------------------------

FIRST = 9_000_000_000


@pytest.fixture
def alerts(hive: Session, lane: None) -> Iterator[list[int]]:
    """Five alerts, the newest first; none of them decided."""
    from etl.settings import settings

    hive.run_file("hive/mart/alerts/create.hql", location=f"{settings().hdfs_uri}{settings().warehouse_path}/mart/alerts")
    hive.run("DELETE FROM mart.alerts")
    rows("DELETE FROM bank.fraud_reports WHERE transaction_id >= %s", FIRST)
    values = ", ".join(
        f"({FIRST + number}, 1, 2, timestamp '2026-03-0{day} 10:00:00.123456', 12.30, 'EUR', 'chip', NULL, 0.9, 'HIGH', 'card_fraud', 1, "
        "array(named_struct('feature', 'amount', 'contribution', 0.5D)), timestamp '2026-03-09 00:00:00', 'stream')"
        for number, day in enumerate((1, 2, 3, 3, 4))
    )
    hive.run(f"INSERT INTO mart.alerts VALUES {values}")
    yield [FIRST + number for number in (4, 3, 2, 1, 0)]
    hive.run("DELETE FROM mart.alerts")
    rows("DELETE FROM bank.fraud_reports WHERE transaction_id >= %s", FIRST)


def listed(api: Api, query: str = "") -> tuple[list[int], str | None]:
    told = api.ask("GET", f"/alerts{query}").told
    return [one["transaction_id"] for one in told["alerts"]], told["next"]


def test_without_the_table_there_is_no_alert(api: Api, hive: Session):
    hive.run("DROP TABLE IF EXISTS mart.alerts")
    assert listed(api) == ([], None)
    assert api.ask("POST", "/alerts/1/decision", {"is_fraud": True}).status == 404


def test_alerts_come_newest_first_page_by_page(api: Api, alerts: list[int]):
    found = api.ask("GET", "/alerts").told["alerts"]
    assert [one["transaction_id"] for one in found] == alerts
    assert found[0] == {
        "transaction_id": alerts[0], "customer_id": 1, "terminal_id": 2, "transacted_at": "2026-03-04T10:00:00.123456Z",
        "amount": "12.30", "currency": "EUR", "channel": "chip", "device": None, "fraud_probability": 0.9, "risk_level": "HIGH",
        "model_name": "card_fraud", "model_version": 1, "reasons": [{"feature": "amount", "contribution": 0.5}],
        "scored_at": "2026-03-09T00:00:00.000000Z", "lane": "stream", "decision": None,
    }  # fmt: skip
    pages, query = [], "?limit=2"
    while query:
        page, following = listed(api, query)
        pages.append(page)
        query = f"?limit=2&before={following}" if following else ""
    assert pages == [alerts[:2], alerts[2:4], alerts[4:]]
    assert listed(api, "?before=2026-03-03T00:00:00Z") == (alerts[3:], None)
    assert listed(api, "?before=0082-01-29T15:41:24.149292Z") == ([], None)


def test_a_decision_is_a_fraud_report_and_the_same_again_changes_nothing(api: Api, alerts: list[int]):
    path = f"/alerts/{alerts[1]}/decision"
    first = api.ask("POST", path, {"is_fraud": True, "scenario": 2})
    assert (first.status, first.told["outcome"]) == (200, "recorded")
    again = api.ask("POST", path, {"is_fraud": True, "scenario": 2}).told
    assert again == {**first.told, "outcome": "unchanged"}
    report = "SELECT is_fraud, scenario, reported_at > now() - interval '1 minute' FROM bank.fraud_reports WHERE transaction_id = %s"
    assert rows(report, alerts[1]) == [(True, 2, True)]
    other = api.ask("POST", path, {"is_fraud": False}).told
    assert (other["outcome"], other["is_fraud"], other["previous"]["is_fraud"]) == ("overwritten", False, True)
    assert rows(report, alerts[1]) == [(False, None, True)]
    assert other["reported_at"] > first.told["reported_at"]
    assert listed(api, "?status=decided") == ([alerts[1]], None)
    assert listed(api, "?status=open") == ([alerts[0], *alerts[2:]], None)
    assert listed(api, "?status=open&limit=1")[0] == [alerts[0]]


def test_two_decisions_at_a_time_are_one_after_the_other(api: Api, alerts: list[int]):
    outcomes: list[str] = []

    def decide(is_fraud: bool) -> None:
        outcomes.append(api.ask("POST", f"/alerts/{alerts[0]}/decision", {"is_fraud": is_fraud}).told["outcome"])

    threads = [threading.Thread(target=decide, args=(one,)) for one in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["overwritten", "recorded"]


def test_what_is_no_alert_cannot_be_decided(api: Api, alerts: list[int]):
    for key in ("1", "0", "x", "-1", "9" * 30):
        assert api.ask("POST", f"/alerts/{key}/decision", {"is_fraud": True}).status == 404


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM bank.fraud_reports",
        "TRUNCATE bank.fraud_reports",
        "SELECT 1 FROM bank.transactions",
        "SELECT 1 FROM bank.customers",
        "INSERT INTO bank.terminals VALUES (1)",
        "CREATE TABLE bank.mine (id int)",
        "ALTER TABLE bank.fraud_reports DISABLE TRIGGER ALL",
    ],
)
def test_the_role_of_the_api_may_write_reports_and_nothing_else(statement: str):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        rows(statement, role="api")


# --- generated and lasting load -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_generated_requests_find_no_answer_that_the_document_does_not_have(api: Api, alerts: list[int]):
    # A list is taken where one of it is valid, whatever the others are.
    taken = '[[operations]]\ninclude-name = "POST /transactions"\nchecks.negative_data_rejection.enabled = false\n'
    (api.folder / "schemathesis.toml").write_text(taken)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{api.port}/openapi.json",
        "--header", f"Authorization: Bearer {api.key}", "--max-time", "30", "--phases", "examples,coverage,fuzzing",
        "--generation-deterministic", "--request-timeout", "40", "--no-color",
        # Some of what the schema allows is refused by rules that none can write: a card number, a time ahead, a key written 1.0.
        "--exclude-checks", "positive_data_acceptance",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=api.folder)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "a defect" not in api.log


@pytest.mark.slow
def test_two_minutes_of_load_leave_memory_and_threads_as_they_were(api: Api, topic: Topic, tmp_path: Path):
    assert api.process is not None
    wrk = shutil.which("wrk")
    assert wrk, "install wrk: apt-get install wrk"
    script = tmp_path / "one.lua"
    body = json.dumps(new())
    script.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {api.key}"\nwrk.body = [==[{body}]==]\n'
    )

    def load(seconds: int) -> str:
        command = [wrk, "-t1", "-c64", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{api.port}/transactions"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    process = psutil.Process(api.process.pid)
    load(20)
    memory, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    told = load(120)
    assert "Non-2xx" not in told, told
    time.sleep(6)
    assert process.memory_info().rss - memory < 50 * 2**20
    assert process.num_threads() <= threads + 2
    assert process.num_fds() <= files + 2
    counts = api.ask("GET", "/metrics").body.decode()
    accepted = re.search(r"^fraud_api_transactions_accepted_total (\S+)", counts, re.MULTILINE)
    assert accepted
    assert sum(topic.ids().values()) == float(accepted[1])
