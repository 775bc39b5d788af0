"""Keys of the API's clients: what the file holds, what is known, how much each may send."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.requests import Request

from api import keys
from api.keys import Bucket, Key, Keys
from api.problems import ProblemError
from etl.errors import RefusedError
from etl.log import run_main
from etl.settings import settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_API_KEYS_FILE", str(tmp_path / "keys.yaml"))
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0)
    settings.cache_clear()
    yield tmp_path / "keys.yaml"
    settings.cache_clear()


def request(authorization: str | None) -> Request:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    return Request({"type": "http", "headers": headers})


def made(client: str = "shop", **others: object) -> str:
    secret = keys.add(**{"client": client, "scopes": ["ingest"], "rate": 10, **others})  # type: ignore[arg-type]
    assert secret is not None
    return secret


def status(known: Keys, authorization: str | None, scope: keys.Scope = "ingest") -> int:
    try:
        known.require(request(authorization), scope)
    except ProblemError as problem:
        return problem.status
    return 200


def test_the_file_holds_a_hash_and_never_the_key(file: Path):
    secret = made()
    assert secret.startswith("cf_")
    assert len(secret) == 46
    assert secret[3:] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_known_key_passes_and_others_do_not(file: Path):
    secret = made()
    known = Keys(file)
    assert status(known, f"Bearer {secret}") == 200
    assert status(known, f"bearer  {secret}") == 200
    assert status(known, f"Bearer {secret}", "alerts") == 403
    its_hash = keys.read(file)[0].sha256
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {secret}x",
        secret,
        f"Basic {secret}",
        "Bearer \xff",
        f"Bearer {its_hash}",
    ):
        assert status(known, wrong) == 401


def test_a_rotated_key_is_known_beside_the_old_one_until_that_is_removed(file: Path):
    old = made()
    known = Keys(file)
    assert status(known, f"Bearer {old}") == 200
    new = made()
    assert [status(known, f"Bearer {one}") for one in (old, new)] == [200, 200]
    keys._save([key for key in keys.read(file) if key != keys.read(file)[0]])
    assert [status(known, f"Bearer {one}") for one in (old, new)] == [401, 200]


def test_a_damaged_file_changes_nothing_until_it_is_mended(file: Path):
    secret = made()
    known = Keys(file)
    assert status(known, f"Bearer {secret}") == 200
    whole = file.read_text()
    for damaged in ("- {client: shop", "- {client: shop}", "\x00", "a: b", whole.replace("rate: 10", "rate: 0")):
        file.write_text(damaged)
        assert status(known, f"Bearer {secret}") == 200
        with pytest.raises(RefusedError, match=r"bash/api_keys\.sh"):
            keys.read(file)
    file.write_text("")
    assert status(known, f"Bearer {secret}") == 401


def test_without_a_file_nobody_is_known(file: Path):
    assert status(Keys(file), "Bearer x") == 401


KEY = Key(client="shop", sha256="0" * 64, scopes=["ingest"], rate=10, burst=30)


def test_a_key_may_send_its_burst_then_its_rate():
    bucket = Bucket(KEY, 0)
    assert bucket.take(KEY, 30, 0) == 0
    assert bucket.take(KEY, 5, 0) == 0.5
    assert bucket.take(KEY, 5, 0.5) == 0
    assert bucket.take(KEY, 1, 0.5) == pytest.approx(0.1)
    assert bucket.take(KEY, 31, 100) == 0


def test_more_than_a_burst_is_paid_for_afterwards():
    bucket = Bucket(KEY, 0)
    assert bucket.take(KEY, 100, 0) == 0
    assert bucket.take(KEY, 1, 0) == pytest.approx(7.1)
    assert bucket.take(KEY, 1, 7.2) == 0


def test_a_key_that_is_used_up_is_told_when_to_come_again(file: Path):
    made(burst=5)
    known = Keys(file)
    (key,) = keys.read(file)
    known.take(key, 5)
    with pytest.raises(ProblemError) as raised:
        known.take(key, 5)
    assert (raised.value.status, raised.value.headers) == (429, {"Retry-After": "1"})


@pytest.fixture
def verb(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """The verb in this process; gives its exit code and what it wrote to both streams."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["api_keys.sh", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_main(keys.main)
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return run


def test_the_verb_adds_lists_and_removes(file: Path, tmp_path: Path, verb: Callable[..., tuple[object, str, str]]):
    out = tmp_path / "secrets" / "key"
    assert verb("add", "shop", "--scope", "all", "--rate", "50", "--out", str(out), "--if-missing") == (0, "", "")
    assert out.stat().st_mode & 0o777 == 0o600
    assert verb("add", "shop", "--scope", "all", "--out", str(out), "--if-missing") == (0, "", "")
    (key,) = keys.read(file)
    assert verb("list") == (0, f"shop  {key.sha256[:8]}  ingest,alerts,decisions,metrics  50/s, 1,000 at a time\n", "")
    code, second, _ = verb("add", "shop")
    assert (code, status(Keys(file), f"Bearer {second.strip()}")) == (0, 200)
    assert verb("remove", "shop", "--id", key.sha256[:8])[:2] == (0, "")
    assert [one.sha256 == key.sha256 for one in keys.read(file)] == [False]
    assert verb("remove", "shop") == (0, "", "")
    assert verb("remove", "shop") == (3, "", "error: there is no such key of shop; bash/api_keys.sh list shows all\n")


def test_a_key_that_cannot_be_is_refused_and_the_file_stays(file: Path, verb: Callable[..., tuple[object, str, str]]):
    for wrong in (("add", "Shop 4"), ("add", "shop", "--rate", "0")):
        code, _, errors = verb(*wrong)
        assert code == 3
        assert errors.startswith("error: this cannot be a key: ")
    assert not file.exists()


def test_keys_that_are_added_at_once_are_all_there(file: Path):
    environment = {**os.environ, "WAREHOUSE_API_KEYS_FILE": str(file)}
    running = [subprocess.Popen([sys.executable, "-m", "api.keys", "add", f"shop-{one}"], env=environment) for one in range(3)]
    assert [one.wait(60) for one in running] == [0] * 3
    assert sorted(key.client for key in keys.read(file)) == ["shop-0", "shop-1", "shop-2"]
