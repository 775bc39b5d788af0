"""Alerts for triage: what `mart.alerts` holds, and what analysts decided, which becomes a fraud report and so a label."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.problems import ProblemError, unavailable
from api.transaction import moment
from etl.databases import opened
from etl.errors import RefusedError, UnavailableError
from etl.sql_server import StatementError, literal, session

Result = TypeVar("Result")

COLUMNS = (
    "transaction_id", "customer_id", "terminal_id", "transacted_at", "amount", "currency", "channel", "device", "fraud_probability",
    "risk_level", "model_name", "model_version", "reasons", "scored_at", "lane",
)  # fmt: skip

LOOKED_THROUGH = 2_000
"""Alerts that one request looks through for those that are open, or decided."""

THREADS = 4
WAITING = 16
SECONDS = 30

Status = Literal["open", "decided"]
Cursor = tuple[dt.datetime, int]


class Decision(BaseModel):
    """What an analyst found about a transaction."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    is_fraud: Annotated[bool, Field(strict=True, description="True: fraud; false: confirmed as genuine")]
    scenario: Annotated[int, Field(strict=True, gt=0, lt=2**15)] | None = Field(None, description="Kind of fraud, where known")


def read_cursor(text: object) -> Cursor:
    """Read where a page begins: a time, or the time and the id of the last alert seen, as `write_cursor` writes it."""
    time, _, key = str(text).partition(",")
    try:
        at = dt.datetime.fromisoformat(time)
        if at.tzinfo is None or (key and not (key.isascii() and key.isdecimal() and len(key) < 20)):
            raise ValueError
        return at.astimezone(dt.UTC), int(key or 0)
    except (ValueError, OverflowError):
        raise PydanticCustomError("cursor", "is no time with its zone (ISO 8601), alone or with a comma and an id") from None


class Page(BaseModel):
    """Which alerts are asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    limit: Annotated[int, Field(ge=1, le=500, description="Most alerts of one answer")] = 100
    before: Annotated[Cursor | None, BeforeValidator(read_cursor), WithJsonSchema({"type": "string", "format": "date-time"})] = Field(
        None, description="Older ones than this time, or what `next` of the answer before says"
    )
    status: Status | None = Field(None, description="open: without a decision; decided: with one; both where it is left out")


class Blocking:
    """Calls that block, in a few threads, with a limit of those that wait and of the time that they take."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="alerts")
        self._room = threading.BoundedSemaphore(THREADS + WAITING)

    async def run(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Return what the call returns.

        Raises
        ------
        ProblemError
            503 when too many wait, it takes too long, or a server is away.
        """
        if not self._room.acquire(blocking=False):
            raise unavailable("too many requests wait for the readers server", 5)
        future = self._pool.submit(call, *arguments)
        # A call that takes too long keeps its thread, and its place, until it ends.
        future.add_done_callback(lambda _: self._room.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), SECONDS)
        except TimeoutError:
            raise unavailable("the readers server or Postgres takes too long", 5) from None
        except (UnavailableError, RefusedError, StatementError) as error:
            raise unavailable(f"the readers server or Postgres does not answer ({type(error).__name__})", 5) from error

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def write_cursor(cursor: Cursor) -> str:
    """Write a cursor as `read_cursor` reads it."""
    return f"{moment(cursor[0])},{cursor[1]}"


def listed(page: Page) -> dict[str, Any]:
    """Return alerts, the newest transaction first, each with its decision where there is one.

    Returns
    -------
    dict
        `alerts`, and `next`, where the following page begins; None at the end. With a
        status a page may be short, even empty, before the end.
    """
    found = _alerts(LOOKED_THROUGH + 1 if page.status else page.limit + 1, page.before)
    decided = _decisions([int(row["transaction_id"]) for row in found])
    shown: list[dict[str, Any]] = []
    last: Cursor | None = None
    for seen, row in enumerate(found):
        if len(shown) == page.limit or seen == LOOKED_THROUGH:
            break
        last = (dt.datetime.fromisoformat(row["transacted_at"]), row["transaction_id"])
        decision = decided.get(row["transaction_id"])
        if page.status is None or (page.status == "decided") == (decision is not None):
            shown.append({**row, "decision": decision})
    else:
        last = None
    return {"alerts": shown, "next": write_cursor(last) if last else None}


def _alerts(count: int, before: Cursor | None) -> list[dict[str, Any]]:
    where = ""
    if before is not None:
        # A year before 1000 has its zeros here only.
        at = f"timestamp {literal(before[0].replace(tzinfo=None).isoformat(' '))}"
        where = f"WHERE transacted_at < {at} OR (transacted_at = {at} AND transaction_id < {before[1]})"
    try:
        with session("readers") as hive:
            rows = hive.run(
                f"SELECT {', '.join(COLUMNS)} FROM mart.alerts {where} ORDER BY transacted_at DESC, transaction_id DESC LIMIT {count}"
            )
    except StatementError as error:
        if _is_missing(error):
            return []
        raise
    return [_alert(row) for row in rows]


def _is_missing(error: StatementError) -> bool:
    """Tell whether there is no table of alerts yet: nothing was ever scored HIGH."""
    return "TABLE_OR_VIEW_NOT_FOUND" in str(error)


def _alert(row: tuple[Any, ...]) -> dict[str, Any]:
    alert = dict(zip(COLUMNS, row, strict=True))
    for name in ("transacted_at", "scored_at"):
        at = alert[name] if isinstance(alert[name], dt.datetime) else dt.datetime.fromisoformat(str(alert[name]))
        alert[name] = moment(at)
    alert["amount"] = str(Decimal(alert["amount"]))
    alert["reasons"] = json.loads(alert["reasons"]) if isinstance(alert["reasons"], str) else alert["reasons"]
    return alert


def _decisions(keys: list[int]) -> dict[int, dict[str, Any]]:
    if not keys:
        return {}
    with opened("api", "bank", "api") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT transaction_id, is_fraud, scenario, reported_at FROM bank.fraud_reports WHERE transaction_id = ANY(%s)", (keys,)
        )
        return {key: _decision(*rest) for key, *rest in cursor.fetchall()}


def _decision(is_fraud: bool, scenario: int | None, reported_at: dt.datetime) -> dict[str, Any]:
    return {"is_fraud": is_fraud, "scenario": scenario, "reported_at": moment(reported_at.astimezone(dt.UTC))}


def decide(transaction_id: int, decision: Decision) -> dict[str, Any]:
    """Write a decision as a fraud report. The same again changes nothing; another one takes the place of the first.

    Returns
    -------
    dict
        The decision that stands; `outcome`: recorded, unchanged or overwritten; `previous`, what stood before, where that was another.

    Raises
    ------
    ProblemError
        404 when there is no such alert.
    """
    if not _exists(transaction_id):
        raise ProblemError(404, "there is no such alert")
    given = (decision.is_fraud, decision.scenario)
    with opened("api", "bank", "api") as connection, connection.cursor() as cursor:
        # Two at a time for one transaction: the second waits at the insert, then sees what the first wrote.
        cursor.execute(
            "INSERT INTO bank.fraud_reports (transaction_id, reported_at, is_fraud, scenario) VALUES (%s, now(), %s, %s) "
            "ON CONFLICT (transaction_id) DO NOTHING RETURNING reported_at",
            (transaction_id, *given),
        )
        if new := cursor.fetchone():
            return {"transaction_id": transaction_id, **_decision(*given, new[0]), "outcome": "recorded"}
        cursor.execute(
            "SELECT is_fraud, scenario, reported_at FROM bank.fraud_reports WHERE transaction_id = %s FOR UPDATE", (transaction_id,)
        )
        stood = cursor.fetchone()
        if stood is None:
            raise unavailable("the report was removed at this moment; send the same again")
        if stood[:2] == given:
            return {"transaction_id": transaction_id, **_decision(*stood), "outcome": "unchanged"}
        cursor.execute(
            "UPDATE bank.fraud_reports SET is_fraud = %s, scenario = %s, reported_at = clock_timestamp() "
            "WHERE transaction_id = %s RETURNING reported_at",
            (*given, transaction_id),
        )
        (at,) = cursor.fetchone() or (stood[2],)
        return {"transaction_id": transaction_id, **_decision(*given, at), "outcome": "overwritten", "previous": _decision(*stood)}


def _exists(transaction_id: int) -> bool:
    try:
        with session("readers") as hive:
            return bool(hive.run(f"SELECT 1 FROM mart.alerts WHERE transaction_id = {transaction_id} LIMIT 1"))
    except StatementError as error:
        if _is_missing(error):
            return False
        raise
