"""Ways by which an alert leaves the house: webhook, e-mail, SMS gateway, log; each renders a template and sends it once."""

from __future__ import annotations

import abc
import hashlib
import hmac
import http.client
import json
import smtplib
import ssl
import urllib.error
import urllib.request
from email.message import EmailMessage
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from api.alert import Alert
from api.deadline import Deadline
from api.notice import Notice
from etl.card_numbers import mask_card_numbers
from etl.errors import RefusedError, WarehouseError
from etl.log import logger
from etl.settings import settings

TEMPLATES = Path(__file__).with_name("templates")

ANOTHERS_FAULT = (401, 403, 404, 405, 407, 408, 421, 425, 429)
"""Refusals of HTTP that are not about this alert: another one would fare no better, and a later attempt may fare well."""

SAMPLE = Alert.model_validate_json(
    '{"transaction_id": 1, "customer_id": 2, "terminal_id": 3, "transacted_at": "2026-01-01T00:00:00Z", "amount": "9.50", '
    '"currency": "EUR", "channel": "online", "device": null, "fraud_probability": 0.9, "risk_level": "HIGH", "model_name": "m", '
    '"model_version": 1, "reasons": [{"feature": "f", "contribution": 0.5, "description": "d"}], '
    '"scored_at": "2026-01-01T00:00:01Z", "received_at": "2026-01-01T00:00:00Z"}'
)
SAMPLE_NOTICE = Notice.model_validate_json(
    '{"run_id": "r", "checked_at": "2026-01-01T00:00:00Z", "failed_checks": '
    '[{"table_name": "core.t", "check_name": "c", "severity": "error", "observed": "2"}]}'
)
"""With them templates are tried before anything is sent."""


class DeliveryError(WarehouseError):
    """A message did not leave; its text holds neither the alert nor a secret.

    Attributes
    ----------
    is_final
        Whether no later attempt can do better.
    """

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class _Channel(BaseModel, abc.ABC):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # What was sent is known for longer: the setting notifications_keep_days.
    quiet_seconds: float = Field(
        0, ge=0, le=30 * 86400, description="a customer's further alerts are not sent so long after one was; 0: all are"
    )

    @abc.abstractmethod
    def send(self, key: str, text: str) -> None:
        """Send a rendered text under an idempotency key, or raise `DeliveryError`."""


class _Remote(_Channel):
    timeout_seconds: float = Field(10, gt=0, le=60, description="for an attempt as a whole, from the name's look-up to the last byte")
    ca_file: Path | None = Field(None, description="certificates that a server's must lead to; none: the system's")

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise DeliveryError(f"ca_file {self.ca_file} cannot be read: {type(error).__name__}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, which tells nobody."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        """Follow nowhere."""


class _Http(_Remote):
    url: HttpUrl

    def _post(self, body: bytes, headers: dict[str, str]) -> None:
        request = urllib.request.Request(str(self.url), body, {"Content-Type": "application/json", **headers})  # noqa: S310 - HttpUrl
        deadline = Deadline(self.timeout_seconds)
        handlers = deadline.http(self._tls() if self.url.scheme == "https" else None)
        try:
            with deadline.kept():
                urllib.request.build_opener(_NoRedirect, *handlers).open(request, timeout=self.timeout_seconds).close()
        except urllib.error.HTTPError as error:
            error.close()
            raise DeliveryError(f"HTTP {error.code}", is_final=400 <= error.code < 500 and error.code not in ANOTHERS_FAULT) from None
        except (OSError, http.client.HTTPException) as error:
            raise DeliveryError(f"no answer: {type(getattr(error, 'reason', error)).__name__}") from None


class Log(_Channel):
    """A line in the notifier's own log."""

    kind: Literal["log"]
    template: str = "log.txt.j2"
    notice_template: str = "notice.log.txt.j2"

    def send(self, key: str, text: str) -> None:
        """Write the text as one event."""
        logger.warning("alert", key=key, text=" ".join(text.split()))


class Webhook(_Http):
    """A POST of JSON; with a secret, signed: `X-Signature-256: sha256=` and the HMAC of the body, in hexadecimal digits."""

    kind: Literal["webhook"]
    template: str = "webhook.json.j2"
    notice_template: str = "notice.webhook.json.j2"
    secret_file: Path | None = None

    def send(self, key: str, text: str) -> None:
        """Post the text."""
        body = text.encode()
        headers = {"Idempotency-Key": key}
        if self.secret_file:
            headers["X-Signature-256"] = f"sha256={hmac.new(_secret(self.secret_file).encode(), body, hashlib.sha256).hexdigest()}"
        self._post(body, headers)


class Sms(_Http):
    """A POST of JSON to a gateway of short messages; the template fits it to the gateway's fields."""

    kind: Literal["sms"]
    template: str = "sms.json.j2"
    notice_template: str = "notice.sms.json.j2"
    sender: str
    recipients: Annotated[list[str], Field(min_length=1)]
    token_file: Path | None = None

    def send(self, key: str, text: str) -> None:
        """Post the text, the token as Bearer."""
        headers = {"Idempotency-Key": key}
        if self.token_file:
            headers["Authorization"] = f"Bearer {_secret(self.token_file)}"
        self._post(text.encode(), headers)


class Email(_Remote):
    """A mail; the template's first line is its subject."""

    kind: Literal["email"]
    template: str = "email.txt.j2"
    notice_template: str = "notice.email.txt.j2"
    host: str
    port: int = 587
    starttls: bool = True
    user: str | None = None
    password_file: Path | None = None
    sender: str
    recipients: Annotated[list[str], Field(min_length=1)]

    def send(self, key: str, text: str) -> None:
        """Hand the mail to the server; a mail sent again has the same Message-ID."""
        mail = EmailMessage()
        mail["From"], mail["To"] = self.sender, ", ".join(self.recipients)
        mail["Subject"], _, body = text.partition("\n")
        mail["Message-ID"] = f"<{key}@{self.sender.rpartition('@')[2].rstrip('>')}>"
        mail["Idempotency-Key"] = key
        mail.set_content(body.lstrip("\n"))
        deadline = Deadline(self.timeout_seconds)
        try:
            with deadline.kept(), deadline.smtp(self.host, self.port, self.timeout_seconds) as server:
                if self.starttls:
                    server.starttls(context=self._tls())
                if self.user and self.password_file:
                    server.login(self.user, _secret(self.password_file))
                refused = server.send_message(mail)
        except smtplib.SMTPResponseException as error:
            # What the server says may repeat addresses.
            is_final = isinstance(error, smtplib.SMTPDataError) and error.smtp_code >= 500
            raise DeliveryError(f"SMTP {error.smtp_code}", is_final) from None
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"no answer: {type(error).__name__}") from None
        if refused:
            logger.warning("some recipients were refused", key=key, refused=len(refused))


Channel = Annotated[Log | Webhook | Sms | Email, Field(discriminator="kind")]


class Retry(BaseModel):
    """How often a message is tried and how long it waits in between: twice as long each time, with jitter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempts: int = Field(20, ge=1)
    first_seconds: float = Field(1, gt=0)
    longest_seconds: float = Field(600, gt=0)


class Configuration(BaseModel):
    """What the setting `notify_file` names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    channels: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Channel]
    retry: Retry = Retry()
    templates: Path | None = Field(None, description="folder whose templates come before those of api/templates")

    def render(self, name: str, message: Alert | Notice) -> str:
        """Return the text of an alert or a notice for a channel, without card numbers.

        Raises
        ------
        DeliveryError
            When the template fails: no later attempt can do better.
        """
        channel = self.channels[name]
        what, path = ("alert", channel.template) if isinstance(message, Alert) else ("notice", channel.notice_template)
        try:
            template = _environment(self.templates).get_template(path)
            told = {what: json.loads(message.model_dump_json())}
            text = mask_card_numbers(template.render(**told, key=message.idempotency_key, channel=channel.model_dump()))
            if ".json" in path:
                json.loads(text)
        except Exception as error:
            # A template is a program: whatever it raises concerns this text, not the other channels.
            raise DeliveryError(f"template {path} failed: {type(error).__name__}", is_final=True) from None
        return text


def configuration() -> Configuration:
    """Return the configuration of channels; each template has been tried and each secret read.

    Raises
    ------
    RefusedError
        When the file is missing or wrong, naming the place.
    """
    path = settings().notify_file
    try:
        found = Configuration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise RefusedError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; correct it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError(f"{path} cannot be read: {type(error).__name__}; correct it or the setting notify_file") from None
    try:
        for name, channel in found.channels.items():
            found.render(name, SAMPLE)
            found.render(name, SAMPLE_NOTICE)
            for field in ("secret_file", "token_file", "password_file"):
                if given := getattr(channel, field, None):
                    _secret(given)
    except DeliveryError as error:
        raise RefusedError(f"{path}: channel {name}: {error}; correct it") from None
    return found


def _environment(folder: Path | None) -> jinja2.Environment:
    folders = [str(place) for place in (folder, TEMPLATES) if place]
    return ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(("html.j2",)),
        trim_blocks=True,
    )


def _secret(path: Path) -> str:
    # Read at each use: a new one takes effect without a restart.
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DeliveryError(f"the secret in {path} cannot be read: {type(error).__name__}") from None
