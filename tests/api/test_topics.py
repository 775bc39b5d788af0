"""What the declarations of topics and users say."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from api import broker, replay, topics, users
from api.topics import Topic
from api.transaction import Transaction
from etl.errors import RefusedError
from etl.settings import settings


def written(folder: Path, content: str) -> Path:
    path = folder / "topics.yaml"
    path.write_text(content)
    return path


def test_every_topic_that_the_code_names_is_declared():
    named = {broker.TRANSACTIONS, broker.VALIDATED, broker.REJECTED, broker.PREDICTIONS, broker.ALERTS}
    assert {topic.name for topic in topics.declared()} == named


def test_a_declaration_is_read_as_it_stands(tmp_path: Path):
    assert topics.declared(written(tmp_path, "a: {partitions: 2, retention_hours: 3, max_message_bytes: 4}\n")) == [Topic("a", 2, 3, 4)]
    assert Topic("a", 2, 3, 4).configuration == {
        "retention.ms": "10800000", "max.message.bytes": "4", "message.timestamp.type": "LogAppendTime",
    }  # fmt: skip


def test_a_message_that_producers_send_is_one_that_the_topic_takes_and_the_largest_transaction_is_far_below():
    (of_transactions,) = [topic for topic in topics.declared() if topic.name == broker.TRANSACTIONS]
    assert of_transactions.max_message_bytes == broker.LARGEST_MESSAGE
    largest = 2**63 - 1 - 10**6
    one = Transaction(
        transaction_id=largest, customer_id=largest, terminal_id=largest, transacted_at=dt.datetime(9999, 1, 1, 0, 0, 0, 1, dt.UTC),
        amount="9999999999.99", currency="EUR", channel="contactless", device="\x01" * 100,
    )  # fmt: skip
    assert len(replay.encoded(one)) < 2_000


@pytest.mark.parametrize(
    "fields",
    [
        "{partitions: 0, retention_hours: 3, max_message_bytes: 4}",
        "{partitions: 2, retention_hours: 3}",
        "{partitions: 2, retention_hours: x, max_message_bytes: 4}",
        "2",
    ],
)
def test_a_topic_that_lacks_something_is_named(tmp_path: Path, fields: str):
    with pytest.raises(RefusedError, match="topic a needs partitions, retention_hours and max_message_bytes"):
        topics.declared(written(tmp_path, f"a: {fields}\n"))


def test_rights_are_those_of_the_user_and_name_declared_topics_only():
    declared = users.declared()
    assert {right.principal for right in declared["stream"]} == {"User:stream"}
    named = {right.name for rights in declared.values() for right in rights if right.restype == users.KINDS["topic"]}
    assert named == {topic.name for topic in topics.declared()}


def test_a_right_that_is_written_otherwise_is_named(tmp_path: Path):
    with pytest.raises(RefusedError, match="everything topic a of b is no right"):
        users.declared(written(tmp_path, "b: [everything topic a]\n"))


def test_clients_are_plain_unless_a_setting_says_otherwise_and_then_have_user_and_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "security.protocol" not in broker.client()
    assert set(broker.java_client()) == {"bootstrap.servers"}
    for name, content in (("password", "secret\n"), ("ca", "")):
        (tmp_path / name).write_text(content)
        monkeypatch.setenv(f"WAREHOUSE_KAFKA_{name.upper()}_FILE", str(tmp_path / name))
    monkeypatch.setenv("WAREHOUSE_KAFKA_SECURITY", "SASL_SSL")
    settings.cache_clear()
    try:
        client, java = broker.client(), broker.java_client()
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert (client["security.protocol"], client["sasl.username"], client["sasl.password"]) == ("SASL_SSL", "replay", "secret")
    assert java["sasl.jaas.config"].endswith('ScramLoginModule required username="replay" password="secret";')
    assert java["ssl.truststore.location"] == client["ssl.ca.location"] == str(tmp_path / "ca")
