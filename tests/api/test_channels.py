"""api/channels.py: what each channel sends, and what it makes of answers."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.alert import Alert
from api.channels import Configuration, DeliveryError, configuration
from etl.errors import RefusedError
from etl.settings import settings
from tests.api.alerts import alert, use
from tests.receivers import http_server, smtp_server, trickling

SECRET = "not-for-logs"


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    yield
    settings.cache_clear()


def send(channel: dict[str, Any], value: bytes = alert(), **other: Any) -> None:
    here = Configuration.model_validate({"channels": {"it": channel}, **other})
    one = Alert.model_validate_json(value)
    here.channels["it"].send(one.idempotency_key, here.render("it", one))


def test_webhook_posts_the_alert_as_json_under_its_key_and_signs_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    with http_server() as got:
        send({"kind": "webhook", "url": got.url, "secret_file": tmp_path / "secret"})
    ((headers, body),) = got.requests
    assert (headers["Content-Type"], headers["Idempotency-Key"]) == ("application/json", "alert-7001")
    assert headers["X-Signature-256"] == "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert json.loads(body) == {
        "idempotency_key": "alert-7001",
        "alert": {
            "transaction_id": 7001, "customer_id": 42, "terminal_id": 9, "transacted_at": "2026-03-01T10:00:00Z", "amount": "199.90",
            "currency": "EUR", "channel": "online", "device": "mobile", "fraud_probability": 0.971235, "risk_level": "HIGH",
            "model_name": "card_fraud", "model_version": 3,
            "reasons": [{"feature": "amount", "contribution": 2.5, "description": "amount <of> the transaction"}],
            "scored_at": "2026-03-01T10:00:01.500000Z", "received_at": "2026-03-01T10:00:00.200000Z",
        },
    }  # fmt: skip


def test_webhook_without_a_secret_is_not_signed() -> None:
    with http_server() as got:
        send({"kind": "webhook", "url": got.url})
    assert "X-Signature-256" not in got.requests[0][0]


def test_sms_posts_sender_recipients_and_a_short_text_with_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    with http_server() as got:
        send({"kind": "sms", "url": got.url, "sender": "Bank", "recipients": ["+3200000001"], "token_file": tmp_path / "token"})
    ((headers, body),) = got.requests
    assert (headers["Authorization"], headers["Idempotency-Key"]) == (f"Bearer {SECRET}", "alert-7001")
    assert json.loads(body) == {
        "from": "Bank",
        "to": ["+3200000001"],
        "text": "HIGH risk: transaction 7001, 199.90 EUR, customer 42, probability 0.97",
    }


def test_an_sms_keeps_within_one_message() -> None:
    with http_server() as got:
        send({"kind": "sms", "url": got.url, "sender": "Bank", "recipients": ["+3200000001"]}, alert(currency="E" * 300))
    assert len(json.loads(got.requests[0][1])["text"]) == 160


def test_mail_has_subject_text_key_and_the_same_message_id_each_time() -> None:
    with smtp_server() as got:
        channel = {"kind": "email", "host": "127.0.0.1", "port": got.port, "starttls": False,
                   "sender": "Warehouse <warehouse@bank.example>", "recipients": ["desk@bank.example", "night@bank.example"]}  # fmt: skip
        send(channel)
        send(channel)
    first, second = (email.message_from_bytes(mail.content or b"", policy=email.policy.default) for mail in got.mails)
    assert got.mails[0].rcpt_tos == ["desk@bank.example", "night@bank.example"]
    assert first["Subject"] == "HIGH risk: transaction 7001, 199.90 EUR"
    assert first["Message-ID"] == second["Message-ID"] == "<alert-7001@bank.example>"
    assert first["Idempotency-Key"] == "alert-7001"
    assert first.get_content().splitlines() == [
        "Transaction 7001 of customer 42 at terminal 9",
        "2026-03-01T10:00:00Z, 199.90 EUR, online, mobile",
        "Probability of fraud 0.971 by card_fraud version 3",
        "",
        "- amount <of> the transaction (amount, +2.500)",
    ]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_mail_goes_over_starttls_with_user_and_password(tmp_path: Path, certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    (tmp_path / "password").write_text(SECRET)
    with smtp_server(SECRET, tls) as got:
        channel = {"kind": "email", "host": "127.0.0.1", "port": got.port, "user": "warehouse", "password_file": tmp_path / "password",
                   "sender": "w@bank.example", "recipients": ["desk@bank.example"]}  # fmt: skip
        with pytest.raises(DeliveryError, match="no answer: SSLCertVerificationError"):
            send(channel)
        send({**channel, "ca_file": certificate})
        (tmp_path / "password").write_text("wrong")
        with pytest.raises(DeliveryError, match="SMTP 535") as told:
            send({**channel, "ca_file": certificate})
    assert not told.value.is_final
    assert len(got.mails) == 1


@pytest.mark.parametrize(
    ("status", "is_final"), [(400, True), (413, True), (422, True), (302, False), (401, False), (404, False), (429, False), (503, False)]
)
def test_only_an_answer_about_this_alert_is_final(status: int, is_final: bool) -> None:
    with http_server() as got:
        got.answers.append(status)
        with pytest.raises(DeliveryError) as told:
            send({"kind": "webhook", "url": got.url})
    assert (str(told.value), told.value.is_final, len(got.requests)) == (f"HTTP {status}", is_final, 1)


@pytest.mark.parametrize(("reply", "is_final"), [("554 no", True), ("451 later", False)])
def test_a_mail_refused_for_good_is_final(reply: str, is_final: bool) -> None:
    with smtp_server() as got:
        got.answers.append(reply)
        with pytest.raises(DeliveryError, match=f"SMTP {reply[:3]}") as told:
            send(
                {
                    "kind": "email",
                    "host": "127.0.0.1",
                    "port": got.port,
                    "starttls": False,
                    "sender": "w@b.example",
                    "recipients": ["d@b.example"],
                }
            )
    assert told.value.is_final == is_final


def test_nobody_there_is_not_final() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        for channel in (
            {"kind": "webhook", "url": f"http://127.0.0.1:{port}/"},
            {"kind": "email", "host": "127.0.0.1", "port": port, "sender": "w@b.example", "recipients": ["d@b.example"]},
        ):
            with pytest.raises(DeliveryError, match="no answer: ConnectionRefusedError") as told:
                send(channel)
            assert not told.value.is_final


def test_a_receiver_that_says_nothing_is_given_up_after_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeliveryError, match="no answer: TimeoutError"):
        send({"kind": "webhook", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/", "timeout_seconds": 0.2})


MAIL = {"kind": "email", "host": "127.0.0.1", "starttls": False, "sender": "w@b.example", "recipients": ["d@b.example"]}


@pytest.mark.parametrize(
    ("channel", "first", "one"),
    [
        ({"kind": "webhook", "url": "http://127.0.0.1:{}/"}, b"HTTP/1.1 200 OK\r\nA: ", b"x"),
        ({"kind": "webhook", "url": "http://127.0.0.1:{}/"}, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ({"kind": "webhook", "url": "https://127.0.0.1:{}/"}, b"\x16\x03\x03\x40\x00", b"\x02"),
        (MAIL, b"220", b"-"),
        (MAIL, b"", b"220-x\r\n"),
    ],
)
def test_an_attempt_has_an_end_for_a_server_that_says_a_byte_now_and_then(channel: dict[str, Any], first: bytes, one: bytes) -> None:
    with trickling(first, one) as port:
        given = {**channel, "port": port} if channel is MAIL else {**channel, "url": channel["url"].format(port)}
        started = time.monotonic()
        with pytest.raises(DeliveryError, match="no answer: TimeoutError") as told:
            send({**given, "timeout_seconds": 1})
        assert 0.9 < time.monotonic() - started < 2
        assert not told.value.is_final


def test_no_card_number_leaves_in_any_text() -> None:
    told = alert(device="4111 1111 1111 1111", reasons=[{"feature": "f", "contribution": 1.0, "description": "card 4111-1111-1111-1111"}])
    with http_server() as got, smtp_server() as mails:
        send({"kind": "webhook", "url": got.url}, told)
        send(
            {
                "kind": "email",
                "host": "127.0.0.1",
                "port": mails.port,
                "starttls": False,
                "sender": "w@b.example",
                "recipients": ["d@b.example"],
            },
            told,
        )
    assert b"4111" not in got.requests[0][1]
    assert b"4111" not in (mails.mails[0].content or b"")


def test_a_template_of_ones_own_comes_before_ours(tmp_path: Path) -> None:
    (tmp_path / "webhook.json.j2").write_text('{"id": {{ alert.transaction_id }}}')
    with http_server() as got:
        send({"kind": "webhook", "url": got.url}, templates=tmp_path)
    assert got.requests[0][1] == b'{"id": 7001}'


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ alert.nothing }}", "UndefinedError"),
        ("{{ alert", "TemplateSyntaxError"),
        ("no json", "JSONDecodeError"),
        ("{{ alert.__class__.__mro__ }}", "SecurityError"),
        ("{% include 'other' %}", "TemplateNotFound"),
    ],
)
def test_a_template_that_fails_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, template: str, error: str
) -> None:
    (tmp_path / "webhook.json.j2").write_text(template)
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": "http://127.0.0.1:9/"}}, templates=str(tmp_path))
    with pytest.raises(RefusedError, match=rf"channel cases: template webhook\.json\.j2 failed: {error}"):
        configuration()


@pytest.mark.parametrize(
    ("channel", "sentence"),
    [
        ({"kind": "pigeon"}, "channels.it: Input tag 'pigeon'"),
        ({"kind": "webhook", "url": "ftp://127.0.0.1/"}, "channels.it.webhook.url: "),
        ({"kind": "webhook", "url": "http://127.0.0.1/", "secret": "s"}, "channels.it.webhook.secret: Extra inputs"),
        ({"kind": "webhook", "url": "http://127.0.0.1/", "secret_file": "/nowhere"}, "channel it: the secret in /nowhere cannot be read"),
        ({"kind": "sms", "url": "http://127.0.0.1/", "sender": "B", "recipients": []}, "channels.it.sms.recipients: "),
    ],
)
def test_a_wrong_file_is_refused_naming_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, channel: dict[str, Any], sentence: str
) -> None:
    use(monkeypatch, tmp_path, {"it": channel})
    with pytest.raises(RefusedError) as told:
        configuration()
    assert sentence in str(told.value)


def test_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WAREHOUSE_NOTIFY_FILE", str(tmp_path / "none.yaml"))
    settings.cache_clear()
    with pytest.raises(RefusedError, match="cannot be read: FileNotFoundError; correct it or the setting notify_file"):
        configuration()


def test_the_file_in_the_repository_has_the_log_only() -> None:
    settings.cache_clear()
    assert list(configuration().channels) == ["log"]
