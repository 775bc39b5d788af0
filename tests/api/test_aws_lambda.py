"""api/aws_lambda.py with an event as an event source mapping of Kafka delivers it: two partitions of the topic."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import aws_lambda
from etl.errors import RefusedError
from etl.settings import settings
from tests.api.alerts import use
from tests.receivers import Http, http_server

EVENT = Path(__file__).with_name("kafka_event.json")


class Context:
    def __init__(self, milliseconds: int = 30_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


@pytest.fixture
def got() -> Iterator[Http]:
    aws_lambda._configured.cache_clear()
    with http_server() as server:
        yield server
    aws_lambda._configured.cache_clear()
    settings.cache_clear()


def event() -> dict[str, Any]:
    return json.loads(EVENT.read_text())


def failed(*places: tuple[str, int]) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": {"partition": partition, "offset": offset}} for partition, offset in places]}


def test_each_record_goes_to_each_channel_under_its_key(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}, "log": {"kind": "log"}})
    assert aws_lambda.handler(event(), Context()) == failed()
    assert [headers["Idempotency-Key"] for headers, _ in got.requests] == ["alert-7001", "alert-7002", "alert-7003"]
    assert json.loads(got.requests[0][1])["alert"]["amount"] == "199.90"


def test_a_record_that_fails_is_reported_and_the_others_are_sent(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}, "more": {"kind": "webhook", "url": got.url}})
    got.answers.extend([204, 204, 503, 204])
    assert aws_lambda.handler(event(), Context()) == failed(("alerts-0", 16))
    assert [headers["Idempotency-Key"] for headers, _ in got.requests] == [f"alert-{n}" for n in (7001, 7001, 7002, 7002, 7003, 7003)]


def test_a_record_that_is_no_alert_is_reported(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    told = event()
    told["records"]["alerts-0"][0]["value"] = base64.b64encode(b"no json").decode()
    del told["records"]["alerts-1"][0]["value"]
    assert aws_lambda.handler(told, Context()) == failed(("alerts-0", 15), ("alerts-1", 3))
    assert [headers["Idempotency-Key"] for headers, _ in got.requests] == ["alert-7002"]


def test_what_there_is_no_time_for_is_reported_and_not_begun(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    assert aws_lambda.handler(event(), Context(6000)) == failed(("alerts-0", 15), ("alerts-0", 16), ("alerts-1", 3))
    assert got.requests == []


def test_quiet_times_are_refused(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url, "quiet_seconds": 60}})
    with pytest.raises(RefusedError, match="channel cases has quiet_seconds"):
        aws_lambda.handler(event(), Context())
