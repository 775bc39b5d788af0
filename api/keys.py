"""Keys of the API's clients: `bash/api_keys.sh`. The file holds their SHA-256, never a key.

A key is 256 random bits, so its plain hash is enough, and a look-up by hash tells nothing by how long it takes.
The file is read again when it changes: a new key is known, and a removed one is not, within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import math
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request

from api.problems import ProblemError
from etl.errors import RefusedError
from etl.files import write
from etl.log import logger, run_main
from etl.settings import settings

Scope = Literal["ingest", "alerts", "decisions", "metrics"]
SCOPES: tuple[Scope, ...] = ("ingest", "alerts", "decisions", "metrics")

LOOK_SECONDS = 1.0
"""How often the file is looked at."""


class Key(BaseModel):
    """One key of a client."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    client: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="Name of the client")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Hash of the key")]
    scopes: Annotated[list[Scope], Field(min_length=1, description="What it may do")]
    rate: Annotated[float, Field(gt=0, description="Transactions a second")]
    burst: Annotated[int, Field(ge=1, description="Transactions at a time, after a rest")]


_FILE = TypeAdapter(list[Key])


def path() -> Path:
    """Return the file of keys."""
    return settings().api_keys_file or settings().data_dir / "secrets" / "api_keys.yaml"


def read(file: Path) -> list[Key]:
    """Read the file; none where there is no file.

    Raises
    ------
    RefusedError
        When it does not hold keys.
    """
    try:
        return _FILE.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")) or [])
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        raise RefusedError(f"{file} cannot be read as YAML; correct it, or make keys anew with bash/api_keys.sh") from None
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        place = ".".join(map(str, one["loc"]))
        raise RefusedError(f"{file}: key {place}: {one['msg']}; correct it, or make it anew with bash/api_keys.sh") from None


class Bucket:
    """How many transactions a key may send now: `burst` after a rest, `rate` more each second."""

    def __init__(self, key: Key, now: float) -> None:
        self._left, self._at = float(key.burst), now

    def take(self, key: Key, count: int, now: float) -> float:
        """Take some; return 0, or after how many seconds there will be so many (none is taken then)."""
        self._left = min(key.burst, self._left + (now - self._at) * key.rate)
        self._at = now
        # A request larger than the burst waits for a full bucket, and empties it below nothing.
        if self._left >= min(count, key.burst):
            self._left -= count
            return 0
        return (min(count, key.burst) - self._left) / key.rate


class Keys:
    """The keys of a file that may change, and what each of them has left."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = (0, 0, 0)
        self._looked_at = -math.inf
        self._keys: dict[str, Key] = {}
        self._buckets: dict[str, Bucket] = {}

    def _look(self, now: float) -> None:
        self._looked_at = now
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = {key.sha256: key for key in read(self._file)}
        except RefusedError as error:
            # Those that were valid stay so: a slip of the pen shall not lock everybody out.
            logger.error("keys are as they were", reason=str(error))
            return
        self._buckets = {sha: bucket for sha, bucket in self._buckets.items() if sha in self._keys}
        logger.info("keys read", file=str(self._file), keys=len(self._keys))

    def require(self, request: Request, scope: Scope) -> Key:
        """Return the key that a request carries.

        Raises
        ------
        ProblemError
            401 without one that is known, 403 where its scopes lack this one.
        """
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._look(now)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = self._keys.get(hashlib.sha256(token.strip().encode()).hexdigest()) if scheme.lower() == "bearer" else None
        if key is None:
            known = ', error="invalid_token"' if scheme else ""
            raise ProblemError(401, "send a key that is known: Authorization: Bearer KEY", {"WWW-Authenticate": f"Bearer{known}"})
        if scope not in key.scopes:
            told = f'Bearer error="insufficient_scope", scope="{scope}"'
            raise ProblemError(403, f"this key has not the scope {scope}", {"WWW-Authenticate": told})
        return key

    def take(self, key: Key, count: int) -> None:
        """Count transactions, or other requests, against the key's rate.

        Raises
        ------
        ProblemError
            429 when it is used up.
        """
        now = time.monotonic()
        bucket = self._buckets.get(key.sha256) or self._buckets.setdefault(key.sha256, Bucket(key, now))
        if wait := bucket.take(key, count, now):
            detail = f"this key may send {key.rate:,.10g} transactions a second; wait as long as Retry-After says"
            raise ProblemError(429, detail, {"Retry-After": str(math.ceil(wait))})


# bash/api_keys.sh ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one at a time read the keys and write them anew."""
    lock = settings().data_dir / "run" / "api_keys.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(keys: list[Key]) -> None:
    write(
        path(),
        "# Clients of the API, made by bash/api_keys.sh: hashes only.\n" + yaml.safe_dump([key.model_dump() for key in keys]),
        private=True,
    )


def add(client: str, scopes: list[Scope], rate: float, burst: int | None = None, out: Path | None = None) -> str | None:
    """Make a key; older ones of the client stay valid.

    Parameters
    ----------
    rate, burst
        Transactions a second, and at a time; by default a second's, and at least one full request.
    out
        File to write the key to, its owner's only.

    Returns
    -------
    str
        The key; None where it was written to a file.
    """
    secret = "cf_" + secrets.token_urlsafe(32)
    given = {"client": client, "scopes": scopes, "rate": rate, "burst": burst or max(1_000, math.ceil(rate))}
    try:
        key = Key(sha256=hashlib.sha256(secret.encode()).hexdigest(), **given)
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        raise RefusedError(f"this cannot be a key: {'.'.join(map(str, one['loc']))}: {one['msg']}") from None
    keys = read(path())
    if out is not None:
        # The key first: a hash whose key nobody has would only be litter.
        write(out, secret + "\n", private=True)
    _save([*keys, key])
    return None if out is not None else secret


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="bash/api_keys.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    added = commands.add_parser("add", help="make a key; the client's older ones stay valid")
    added.add_argument("client")
    added.add_argument("--scope", action="append", choices=[*SCOPES, "all"], help="may be repeated; default: ingest")
    added.add_argument("--rate", type=float, default=1_000, help="transactions a second (default 1000)")
    added.add_argument("--burst", type=int, help="transactions at a time (default: a second's, at least 1000)")
    added.add_argument("--out", type=Path, help="write the key to this file instead")
    added.add_argument("--if-missing", action="store_true", help="do nothing where the file is there and its key is known")
    commands.add_parser("list", help="clients, keys' ids, scopes and rates")
    removed = commands.add_parser("remove", help="remove a client's keys")
    removed.add_argument("client")
    removed.add_argument("--id", default="", help="this one only: its id as `list` shows it")
    given = parser.parse_args()
    with _alone():
        keys = read(path())
        match given.command:
            case "add":
                if given.if_missing and given.out and given.out.exists():
                    known = hashlib.sha256(given.out.read_text().strip().encode()).hexdigest()
                    if any(key.sha256 == known for key in keys):
                        return
                scopes = list(SCOPES) if "all" in (given.scope or []) else list(dict.fromkeys(given.scope or ["ingest"]))
                if secret := add(given.client, scopes, given.rate, given.burst, given.out):
                    print(secret)
            case "list":
                for key in keys:
                    print(f"{key.client}  {key.sha256[:8]}  {','.join(key.scopes)}  {key.rate:,.10g}/s, {key.burst:,} at a time")
            case "remove":
                kept = [key for key in keys if key.client != given.client or not key.sha256.startswith(given.id)]
                if len(kept) == len(keys):
                    raise RefusedError(f"there is no such key of {given.client}; bash/api_keys.sh list shows all")
                _save(kept)


if __name__ == "__main__":
    run_main(main)
