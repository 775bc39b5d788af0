"""A readers server that would be open to others than the settings say is refused before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl.errors import RefusedError
from etl.settings import settings
from etl.stack import configuration

LDAP = {"readers_authentication": "ldap", "readers_ldap_url": "ldaps://ldap.example.com", "readers_ldap_user_dn": "uid=%s,dc=example"}
Given = Callable[..., None]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Given]:
    def change(**changed: object) -> None:
        for name, value in {"data_dir": tmp_path, **changed}.items():
            monkeypatch.setenv(f"WAREHOUSE_{name.upper()}", str(value))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.1.1"])
def test_on_this_machine_nobody_is_asked(host: str, given: Given) -> None:
    given(host=host)
    assert configuration.readers_access() == {"hive.server2.authentication": "NONE"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"host": "0.0.0.0"}, r"would listen on 0.0.0.0 and ask nobody for a password: whoever reaches port \d+ would read every"),
        ({"host": "10.1.2.3"}, r"would listen on 10.1.2.3 and ask nobody"),
        ({"host": "10.1.2.3", **LDAP}, r"would listen on 10.1.2.3 and take passwords in the clear; .*bash/certificates.sh readers"),
        ({**LDAP, "readers_ldap_url": "ldap://ldap.example.com"}, r"would send passwords in the clear; give it as ldaps://"),
        ({**LDAP, "readers_ldap_url": "ldap.example.com"}, r"readers_ldap_url is 'ldap.example.com'"),
        ({**LDAP, "readers_ldap_user_dn": "uid=ana"}, r"readers_ldap_user_dn 'uid=ana'; give them as in"),
        ({"readers_authentication": "ldap"}, r"readers_authentication is ldap, but readers_ldap_url is ''"),
    ],
)
def test_what_would_be_open_is_refused(changed: dict[str, str], sentence: str, given: Given) -> None:
    given(**changed)
    with pytest.raises(RefusedError, match=sentence):
        configuration.readers_access()


def test_a_container_says_that_its_network_is_closed(given: Given) -> None:
    given(host="0.0.0.0", readers_authentication="none")
    assert configuration.readers_access() == {"hive.server2.authentication": "NONE"}


def test_ldap_and_a_certificate_open_it_beyond_this_machine(given: Given, tmp_path: Path) -> None:
    given(host="10.1.2.3", readers_tls_file=tmp_path / "readers.pem", **LDAP)
    properties = configuration.readers_access()
    assert properties["hive.server2.authentication"] == "LDAP"
    assert properties["hive.server2.authentication.ldap.url"] == "ldaps://ldap.example.com"
    assert properties["hive.server2.use.SSL"] == "true"
    assert len(str(properties["hive.server2.keystore.password"])) >= 24


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, r"is not there; bash/certificates.sh readers makes one"), ("no key", r"holds no key with its")]
)
def test_a_certificate_that_cannot_be_read_is_named(content: str | None, sentence: str, given: Given, tmp_path: Path) -> None:
    pem = tmp_path / "readers.pem"
    if content:
        pem.write_text(content)
    given(readers_tls_file=pem)
    with pytest.raises(RefusedError, match=sentence):
        configuration.write_readers_keystore()
