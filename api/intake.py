"""What a request's body holds: transactions that are valid, and what is wrong with the others.

One object, a JSON list, or NDJSON (one object a line). Nothing here repeats a value that came in.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from api.problems import ProblemError
from api.transaction import ONE, Transaction, field_name, is_too_far_ahead

MOST = 1_000
"""Transactions in one request."""

MOST_FAULTS = 1_000
"""Faults that one answer tells: more say nothing new."""

Kind = Literal["json", "lines"]
KINDS: dict[str, Kind] = {"application/json": "json", "application/x-ndjson": "lines"}

_LIST = TypeAdapter(list[Transaction])


@dataclass
class Batch:
    """The transactions of a request.

    Attributes
    ----------
    count
        How many came, valid or not.
    valid
        Those to send on, by place: index in a list, line of NDJSON.
    faults
        Of the others: `field`, `reason`, and `index` or `line`.
    """

    count: int
    valid: dict[int, Transaction] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)


def kind(content_type: str) -> Kind:
    """Return how a body of this media type is read.

    Raises
    ------
    ProblemError
        415 for any but JSON and NDJSON in UTF-8.
    """
    name, _, parameters = content_type.lower().partition(";")
    known = KINDS.get(name.strip())
    if known is None or parameters.replace('"', "").strip() not in ("", "charset=utf-8"):
        raise ProblemError(415, f"send {' or '.join(KINDS)}, in UTF-8", {"Accept": ", ".join(KINDS)})
    return known


def read(body: bytes, how: Kind, received_at: dt.datetime) -> Batch:
    """Read the transactions of a body.

    Raises
    ------
    ProblemError
        422 where it is no JSON or holds nothing, 413 where it holds more than `MOST`.
    """
    if how == "lines":
        name, batch = "line", _lines(body)
    elif body.lstrip(b" \t\r\n").startswith(b"["):
        name, batch = "index", _list(body)
    else:
        name, batch = "", _one(body)
    if any(is_too_far_ahead(one, received_at) for one in batch.valid.values()):
        for place, one in list(batch.valid.items()):
            if is_too_far_ahead(one, received_at):
                del batch.valid[place]
                batch.faults.append({"place": place, "field": "transacted_at", "reason": "lies more than a day ahead"})
    for fault in batch.faults:
        place = fault.pop("place")
        if name:
            fault[name] = place
    return batch


def _one(body: bytes) -> Batch:
    try:
        return Batch(1, {0: ONE.validate_json(body)})
    except ValidationError as error:
        return Batch(1, faults=[_fault(0, one["loc"], one) for one in _told(error)])


def _lines(body: bytes) -> Batch:
    lines = {number: line for number, line in enumerate(body.split(b"\n"), 1) if line.strip()}
    batch = Batch(_bounded(len(lines)))
    for number, line in lines.items():
        try:
            batch.valid[number] = ONE.validate_json(line)
        except ValidationError as error:
            batch.faults += [_fault(number, one["loc"], one) for one in _told(error)]
    return batch


def _list(body: bytes) -> Batch:
    try:
        found = _LIST.validate_json(body)
        return Batch(_bounded(len(found)), dict(enumerate(found)))
    except ValidationError as error:
        told = _told(error)
    if not told[0]["loc"]:
        raise ProblemError(422, "the body is not JSON", errors=[{"field": "", "reason": told[0]["msg"]}])
    values = from_json(body)
    bad = {one["loc"][0] for one in told}
    good = [place for place in range(_bounded(len(values))) if place not in bad]
    valid = _LIST.validate_json(to_json([values[place] for place in good], inf_nan_mode="constants"))
    return Batch(len(values), dict(zip(good, valid, strict=True)), [_fault(one["loc"][0], one["loc"][1:], one) for one in told])


def _bounded(count: int) -> int:
    if not count:
        raise ProblemError(422, "the body holds no transaction", errors=[{"field": "", "reason": "is empty"}])
    if count > MOST:
        raise ProblemError(413, f"a request holds {MOST:,} transactions at most; send them in several")
    return count


def faults(error: ValidationError, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return what is wrong with one object that is no transaction: `field` and `reason`."""
    return [{"field": field_name(one["loc"], model), "reason": _reason(one)} for one in _told(error)]


def _told(error: ValidationError) -> list[ErrorDetails]:
    if error.error_count() > MOST_FAULTS:
        raise ProblemError(422, f"more than {MOST_FAULTS:,} faults: this is not a body of transactions", errors=[])
    return error.errors(include_url=False, include_context=False, include_input=False)


def _fault(place: object, location: tuple[int | str, ...], one: ErrorDetails) -> dict[str, Any]:
    return {"place": place, "field": field_name(location), "reason": _reason(one)}


def _reason(one: ErrorDetails) -> str:
    return "is no field here" if one["type"] == "extra_forbidden" else one["msg"]
