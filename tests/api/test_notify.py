"""api/notify.py on a real Postgres: what is recorded, sent, kept quiet, given up, and taken up again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api import broker, notify, topics
from api.channels import Configuration, Retry
from api.notify import Arrival, deliver, deliver_next, parse, record, wait_seconds
from etl import maintain
from etl.databases import connect, opened
from etl.settings import Settings, settings
from tests.api.alerts import alert, use
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.receivers import Http, trickling, until


@pytest.fixture
def warehouse(postgres_server: None) -> Iterator[None]:
    rows("TRUNCATE ops.notifications", role="etl", dbname="warehouse")
    yield
    settings.cache_clear()


def webhook(url: str, retry: dict[str, Any] | None = None, **other: Any) -> Configuration:
    channels = {"cases": {"kind": "webhook", "url": url, **other}}
    return Configuration.model_validate({"channels": channels, "retry": retry or {"attempts": 3, "first_seconds": 0.01}})


def arrive(*values: bytes | None, first: int = 0, channels: tuple[str, ...] = ("cases",)) -> None:
    with opened("etl", "warehouse") as session:
        record(session, [Arrival("alerts", 0, first + number, value) for number, value in enumerate(values)], channels)


def deliver_all(here: Configuration, name: str = "cases") -> None:
    with closing(connect("etl", "warehouse")) as session:
        while rows("SELECT 1 FROM ops.notifications WHERE state = 'pending' AND channel = %s", name, role="etl", dbname="warehouse"):
            deliver_next(session, here, name)


def states() -> list[tuple[object, ...]]:
    return rows(
        "SELECT idempotency_key, channel, state, attempts, error FROM ops.notifications ORDER BY recorded_at",
        role="etl",
        dbname="warehouse",
    )


def keys(got: Http) -> list[str]:
    return [headers["Idempotency-Key"] for headers, _ in got.requests]


def test_an_alert_is_recorded_once_for_each_channel_however_often_it_comes(warehouse: None) -> None:
    arrive(alert(1), alert(1), channels=("cases", "log"))
    arrive(alert(1), alert(2), channels=("cases", "log"))
    assert states() == [(f"alert-{number}", name, "pending", 0, None) for number in (1, 2) for name in ("cases", "log")]


def test_what_was_sent_is_not_sent_again_when_it_comes_again(warehouse: None, got: Http) -> None:
    here = webhook(got.url)
    for _ in range(2):
        arrive(alert(1), alert(2))
        deliver_all(here)
    assert keys(got) == ["alert-1", "alert-2"]
    assert states() == [("alert-1", "cases", "sent", 1, None), ("alert-2", "cases", "sent", 1, None)]


def test_a_server_that_recovers_gets_the_same_key_again(warehouse: None, got: Http) -> None:
    got.answers.extend([503, 503])
    arrive(alert(1))
    deliver_all(webhook(got.url))
    assert keys(got) == ["alert-1"] * 3
    assert states() == [("alert-1", "cases", "sent", 3, None)]


def test_after_the_last_attempt_an_alert_is_a_dead_letter(warehouse: None, got: Http) -> None:
    got.answers.extend([503] * 3)
    arrive(alert(1))
    deliver_all(webhook(got.url))
    assert states() == [("alert-1", "cases", "dead", 3, "HTTP 503")]
    assert len(got.requests) == 3


def test_what_the_receiver_refuses_for_good_is_tried_once(warehouse: None, got: Http) -> None:
    got.answers.append(422)
    arrive(alert(1))
    deliver_all(webhook(got.url))
    assert states() == [("alert-1", "cases", "dead", 1, "HTTP 422")]


def test_what_other_code_recorded_and_this_one_cannot_read_is_a_dead_letter(warehouse: None, got: Http) -> None:
    arrive(alert(1), alert(2))
    rows("UPDATE ops.notifications SET payload = '{}' WHERE idempotency_key = 'alert-1'", role="etl", dbname="warehouse")
    deliver_all(webhook(got.url))
    assert states() == [("alert-1", "cases", "dead", 1, "transaction_id: Field required"), ("alert-2", "cases", "sent", 1, None)]


def test_a_failed_attempt_is_not_repeated_before_its_time(warehouse: None, got: Http) -> None:
    got.answers.append(503)
    here = webhook(got.url, retry={"first_seconds": 60})
    arrive(alert(1))
    with closing(connect("etl", "warehouse")) as session:
        assert [deliver_next(session, here, "cases") for _ in range(3)] == [True, False, False]
    ((seconds,),) = rows(
        "SELECT extract(epoch FROM next_attempt_at - clock_timestamp())::float FROM ops.notifications", role="etl", dbname="warehouse"
    )
    assert 29 < float(str(seconds)) <= 60
    assert len(got.requests) == 1


def test_waits_double_with_jitter_up_to_a_bound() -> None:
    retry = Retry(attempts=2000, first_seconds=1, longest_seconds=300)
    for attempts, longest in ((1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (1999, 300)):
        waits = [wait_seconds(retry, attempts) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_customer_of_whom_was_just_told_is_kept_quiet_and_others_are_not(warehouse: None, got: Http) -> None:
    here = webhook(got.url, quiet_seconds=60)
    arrive(alert(1, customer_id=7), alert(2, customer_id=7), alert(3, customer_id=8))
    deliver_all(here)
    assert keys(got) == ["alert-1", "alert-3"]
    assert [row[2] for row in states()] == ["sent", "quiet", "sent"]


def test_quiet_time_ends_and_is_read_from_the_database(warehouse: None, got: Http) -> None:
    here = webhook(got.url, quiet_seconds=60)
    arrive(alert(1))
    deliver_all(here)
    rows("UPDATE ops.notifications SET ended_at = ended_at - interval '61 seconds'", role="etl", dbname="warehouse")
    arrive(alert(2))
    deliver_all(here)
    assert keys(got) == ["alert-1", "alert-2"]


def test_an_alert_that_was_not_sent_makes_nobody_quiet(warehouse: None, got: Http) -> None:
    got.answers.append(422)
    arrive(alert(1), alert(2))
    deliver_all(webhook(got.url, quiet_seconds=60))
    assert [row[2] for row in states()] == ["dead", "sent"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"no json", "Invalid JSON: expected ident at line 1 column 2"),
        (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (None, "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"[1]", "Input should be an object"),
        (b"\xff\xfe", "Invalid JSON: expected value at line 1 column 1"),
        (alert(customer_id="42"), "customer_id: Input should be a valid integer"),
        (alert(fraud_probability=7), "fraud_probability: Input should be less than or equal to 1"),
        (alert(reasons=[{"feature": 1}]), "reasons.0.feature: Input should be a valid string"),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "transaction_id: Field required"),
    ],
)
def test_a_message_that_is_no_alert_is_a_dead_letter_with_its_reason(warehouse: None, got: Http, value: bytes | None, reason: str) -> None:
    arrive(value, alert(2), first=5)
    deliver_all(webhook(got.url))
    assert states() == [("alerts/0/5", "", "dead", 0, reason), ("alert-2", "cases", "sent", 1, None)]
    assert keys(got) == ["alert-2"]


def test_an_unknown_field_of_a_newer_stream_job_does_no_harm() -> None:
    assert parse(alert(1, weather="fine")).transaction_id == 1


def test_no_card_number_is_recorded(warehouse: None) -> None:
    arrive(b"\0 4111 1111 1111 1111", alert(2, device="4111111111111111"), alert(4111111111111111))
    payloads = [str(payload) for (payload,) in rows("SELECT payload FROM ops.notifications", role="etl", dbname="warehouse")]
    assert len(payloads) == 3
    assert not any("1111" in payload for payload in payloads)
    assert not any("4111" in str(row) for row in states())


def test_a_channel_that_is_down_holds_back_no_other(warehouse: None, got: Http) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = Configuration.model_validate(
            {"channels": {
                "down": {"kind": "webhook", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/", "timeout_seconds": 1},
                "cases": {"kind": "webhook", "url": got.url},
            }}
        )  # fmt: skip
        arrive(*(alert(number) for number in range(1, 51)), channels=("down", "cases"))
        stop = threading.Event()
        threads = [threading.Thread(target=deliver, args=(here, name, stop)) for name in here.channels]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(got.requests) == 50)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert keys(got) == [f"alert-{number}" for number in range(1, 51)]
    assert [(row[1], row[2]) for row in states()].count(("cases", "sent")) == 50
    assert {row[2] for row in states() if row[1] == "down"} == {"pending"}


def test_a_receiver_that_never_ends_its_answer_holds_back_no_later_alert_and_leaves_no_transaction_open(warehouse: None) -> None:
    with trickling(b"HTTP/1.1 200 OK\r\nA: ", b"x") as port:
        slow = {"kind": "webhook", "url": f"http://127.0.0.1:{port}/", "timeout_seconds": 0.5}
        here = Configuration.model_validate({"channels": {"slow": slow}, "retry": {"attempts": 1}})
        arrive(alert(1), alert(2), channels=("slow",))
        stop = threading.Event()
        thread = threading.Thread(target=deliver, args=(here, "slow", stop))
        thread.start()
        try:
            until(lambda: [row[2] for row in states()] == ["dead", "dead"])
            open_ones = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notify slow%' AND state <> 'idle'"
            until(lambda: rows(open_ones, role="etl", dbname="warehouse") == [(0,)])
        finally:
            stop.set()
            thread.join()


def test_two_notifiers_share_the_work_and_send_nothing_twice(warehouse: None, got: Http) -> None:
    here = webhook(got.url)
    arrive(*(alert(number) for number in range(1, 41)))
    stop = threading.Event()
    threads = [threading.Thread(target=deliver, args=(here, "cases", stop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(got.requests) >= 40)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sorted(keys(got)) == sorted(f"alert-{number}" for number in range(1, 41))


def test_dead_letters_are_listed_and_tried_again(
    warehouse: None, got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}, "log": {"kind": "log"}})
    got.answers.extend([422, 422])
    here = webhook(got.url)
    arrive(alert(1), b"no json", alert(2))
    deliver_all(here)
    capsys.readouterr()
    notify.dead()
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in told[:3]] == [
        ["alerts/0/1", "-", "0", "Invalid", "JSON:", "expected", "ident", "at", "line", "1", "column", "2"],
        ["alert-1", "cases", "1", "HTTP", "422"],
        ["alert-2", "cases", "1", "HTTP", "422"],
    ]
    assert told[3] == "3 dead letters"
    notify.retry(["log"])
    notify.retry([])
    assert capsys.readouterr().out == "0 dead letters are tried again\n2 dead letters are tried again\n"
    deliver_all(here)
    assert keys(got) == ["alert-1", "alert-2"] * 2
    assert [row[2] for row in states()] == ["sent", "dead", "sent"]


AGES = """
INSERT INTO ops.notifications (idempotency_key, channel, customer_id, state, payload, recorded_at, ended_at)
SELECT key, 'cases', customer_id, state, '{}', clock_timestamp() - days * interval '1 day',
       CASE WHEN state <> 'pending' THEN clock_timestamp() - days * interval '1 day' END
FROM (VALUES ('alert-1', 1, 'sent', 61), ('alert-2', 1, 'quiet', 61), ('alert-3', 2, 'dead', 61), ('alert-4', 2, 'pending', 61),
             ('alert-5', 3, 'sent', 59), ('alert-6', 3, 'quiet', 59)) AS given (key, customer_id, state, days)
"""


def aged() -> list[str]:
    return [str(row[0]) for row in rows("SELECT idempotency_key FROM ops.notifications ORDER BY 1", role="etl", dbname="warehouse")]


def test_what_ended_long_ago_is_removed_and_dead_letters_and_what_waits_stay(warehouse: None) -> None:
    rows(AGES, role="etl", dbname="warehouse")
    assert maintain.prune_notifications(60) == 2
    assert aged() == ["alert-3", "alert-4", "alert-5", "alert-6"]
    assert maintain.prune_notifications(60) == 0


def test_after_old_ones_are_removed_what_comes_again_is_not_sent_again_and_quiet_time_goes_on(warehouse: None, got: Http) -> None:
    here = webhook(got.url, quiet_seconds=60)
    arrive(alert(1, customer_id=7))
    deliver_all(here)
    rows(AGES.replace("'alert-1'", "'alert-0'"), role="etl", dbname="warehouse")
    maintain.prune_notifications(60)
    rows("DELETE FROM ops.notifications WHERE state = 'pending'", role="etl", dbname="warehouse")
    arrive(alert(1, customer_id=7), alert(5, customer_id=3), alert(7, customer_id=7))
    deliver_all(here)
    assert keys(got) == ["alert-1"]
    assert [row[2] for row in states() if row[0] == "alert-7"] == ["quiet"]


def test_a_removal_killed_at_work_removes_nothing_and_the_next_one_everything(warehouse: None) -> None:
    rows(AGES, role="etl", dbname="warehouse")
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        # It has removed one row and waits for the other.
        cursor.execute("SELECT 1 FROM ops.notifications WHERE idempotency_key = 'alert-2' FOR UPDATE")
        killed_at(Step("etl.maintain:prune_notifications", 1.0), "from etl import maintain; maintain.prune_notifications(60)")
    assert aged() == [f"alert-{number}" for number in range(1, 7)]
    assert maintain.prune_notifications(60) == 2
    assert aged() == ["alert-3", "alert-4", "alert-5", "alert-6"]


def test_alerts_are_known_for_longer_than_kafka_may_deliver_them_and_than_anybody_is_kept_quiet() -> None:
    (retention,) = [topic.retention_hours for topic in topics.declared() if topic.name == broker.ALERTS]
    # A segment goes as a whole, when its newest message is too old; it takes messages for a week.
    deliverable = retention / 24 + 7
    field = Settings.model_fields["notifications_keep_days"]
    with pytest.raises(ValidationError, match="greater than or equal to 38"):
        Settings(notifications_keep_days=37.9)
    assert field.default >= 38 > deliverable
    with pytest.raises(ValidationError, match="less than or equal to 2592000"):
        webhook("http://127.0.0.1/", quiet_seconds=30 * 86400 + 1)
