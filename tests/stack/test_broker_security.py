"""A broker with SASL_SSL: everybody has his own rights, and nobody else gets in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AclBinding, AdminClient

from api import broker, lag, replay, users
from etl.errors import RefusedError, UnavailableError
from etl.settings import ROOT, settings
from tests.brokers import OwnBroker, environment, given, ids, sent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def secured() -> Iterator[OwnBroker]:
    with given(kafka_security="SASL_SSL") as own:
        subprocess.run([ROOT / "bash" / "certificates.sh"], env=environment(), check=True, capture_output=True)
        own.start()
        own.prepare()
        yield own


@pytest.fixture
def as_user(secured: OwnBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def become(name: str, **others: str) -> None:
        monkeypatch.setenv("WAREHOUSE_KAFKA_USER", name)
        for other, value in others.items():
            monkeypatch.setenv(f"WAREHOUSE_{other.upper()}", value)
        settings.cache_clear()

    monkeypatch.setattr(replay, "PATIENCE_SECONDS", 8.0)
    yield become
    monkeypatch.undo()
    settings.cache_clear()


def rights() -> list[AclBinding]:
    admin = AdminClient(broker.client())
    return admin.describe_acls(users.ALL).result(30)


def test_a_user_does_what_it_may(as_user: Callable[..., None], secured: OwnBroker):
    as_user("replay")
    assert replay.Broker().send(sent(1, 10)) == []
    as_user("admin")
    assert ids() == list(range(1, 11))
    # Users and rights made once more are the same.
    secured.prepare()
    wanted = [right for rights in users.declared().values() for right in rights]
    assert sorted(map(str, rights())) == sorted(map(str, wanted))


@pytest.mark.parametrize("user", ["api", "replay", "stream"])
def test_who_tells_the_lag_may_look_at_every_topic(as_user: Callable[..., None], user: str):
    as_user("replay")
    replay.Broker().send(sent(2001, 3))
    as_user(user)
    assert {(one.query, one.topic) for one in lag.lags()} == {("scores", broker.TRANSACTIONS), *(("tables", one) for one in broker.TOPICS)}
    assert lag.behind("scores") >= 3


def test_a_topic_that_a_user_may_not_look_at_is_told_in_one_sentence(as_user: Callable[..., None]):
    as_user("notify")
    with pytest.raises(RefusedError, match="shows no topic transactions: not made yet, or this user may not describe it"):
        lag.behind("scores")


READ = """
import sys
from api import broker, stream
spark = stream.spark_session()
found = stream.source(spark, broker.TRANSACTIONS, 1000).writeStream.format("memory").queryName("found")
query = found.option("checkpointLocation", f"file://{sys.argv[1]}").trigger(availableNow=True).start()
query.awaitTermination(120)
print(spark.table("found").count())
"""


def test_spark_reads_for_the_stream_job(as_user: Callable[..., None], secured: OwnBroker, tmp_path: Path):
    as_user("replay")
    replay.Broker().send(sent(1001, 10))
    as_user("admin")
    there = len(ids())
    for user, told in (("stream", f"{there}\n"), ("notify", "")):
        as_user(user)
        ran = subprocess.run([sys.executable, "-c", READ, tmp_path / user], env=environment(), capture_output=True, text=True, check=False)
        assert ran.stdout == told, ran.stderr[-3000:]
        assert (settings().kafka_secrets / f"{user}.password").read_text().strip() not in ran.stderr
    assert "TopicAuthorizationException" in ran.stderr


def test_a_right_that_is_not_declared_any_more_is_taken(as_user: Callable[..., None]):
    as_user("admin")
    declared = users.declared()
    users.apply({"notify": declared["notify"][:1]})
    found = rights()
    assert [right.name for right in found if right.principal == "User:notify"] == ["alerts"]
    assert len([right for right in found if right.principal == "User:stream"]) == len(declared["stream"])
    users.apply(declared)


def test_a_topic_without_a_right_is_refused(as_user: Callable[..., None]):
    as_user("replay")
    failed = []
    producer = Producer({**broker.producer(), "message.timeout.ms": 20_000})
    producer.produce(broker.ALERTS, b"{}", on_delivery=lambda error, _: failed.append(error))
    assert producer.flush(30) == 0
    assert [error.name() for error in failed] == ["TOPIC_AUTHORIZATION_FAILED"]
    as_user("notify")
    consumer = Consumer(broker.consumer("notify"))
    consumer.subscribe([broker.TRANSACTIONS])
    message = consumer.poll(30)
    assert message is not None
    assert message.error().name() == "TOPIC_AUTHORIZATION_FAILED"
    consumer.close()


def test_a_wrong_password_is_refused(as_user: Callable[..., None], tmp_path: Path):
    wrong = tmp_path / "password"
    wrong.write_text("not it")
    as_user("replay", kafka_password_file=str(wrong))
    with pytest.raises(UnavailableError, match="did not acknowledge"):
        replay.Broker().send(sent(11, 1))
    told = []
    client = AdminClient({**broker.client(), "error_cb": told.append})
    with pytest.raises(KafkaException):
        client.list_topics(timeout=5)
    client.poll(1)
    assert "_AUTHENTICATION" in {error.name() for error in told}


def test_a_new_password_takes_the_place_of_the_old_one(as_user: Callable[..., None], secured: OwnBroker, tmp_path: Path):
    path = settings().kafka_secrets / "replay.password"
    old = tmp_path / "old"
    old.write_text(path.read_text())
    path.write_text("another one")
    secured.prepare()
    as_user("replay")
    assert replay.Broker().send(sent(21, 1)) == []
    as_user("replay", kafka_password_file=str(old))
    with pytest.raises(UnavailableError, match="did not acknowledge"):
        replay.Broker().send(sent(22, 1))


def test_a_client_without_tls_or_without_a_certificate_is_refused(as_user: Callable[..., None]):
    as_user("replay")
    for protocol in ("PLAINTEXT", "SASL_PLAINTEXT"):
        with pytest.raises(KafkaException):
            AdminClient({**broker.client(), "security.protocol": protocol}).list_topics(timeout=5)
    # The controller takes nobody but the broker itself, by its certificate.
    controller = f"{settings().kafka_host}:{settings().port('kafka_controller')}"
    without = {"bootstrap.servers": controller, "security.protocol": "SSL", "ssl.ca.location": broker.client()["ssl.ca.location"]}
    for other in (without, {"bootstrap.servers": controller, "log_level": 2}):
        with pytest.raises(KafkaException):
            AdminClient({**other, "log_level": 2}).list_topics(timeout=5)


def test_no_password_is_in_arguments_or_logs(secured: OwnBroker):
    folder = settings().kafka_secrets
    passwords = [path.read_text() for path in folder.glob("*.password")]
    assert len(passwords) == len(users.declared()) + 1
    arguments = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    texts = [*arguments, secured.log.read_text()]
    assert [password for password in passwords if any(password in text for text in texts)] == []
    private = [*folder.iterdir(), secured.folder / "conf" / "kafka" / "server.properties"]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert not (secured.folder / "kafka" / "format.arguments").exists()


def test_a_missing_password_file_is_told_in_one_sentence(as_user: Callable[..., None], tmp_path: Path):
    as_user("replay", kafka_password_file=str(tmp_path / "none"))
    with pytest.raises(
        RefusedError, match=r"none cannot be read \(No such file or directory\), which Kafka's user replay needs with SASL_SSL"
    ):
        broker.client()
