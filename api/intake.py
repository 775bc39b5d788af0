"""What a request's body holds: transactions that are valid, and what is wrong with the others.

One object, a JSON list, or NDJSON (one object a line). Nothing here repeats a value that came in.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, FailFast, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from api.problems import ProblemError
from api.transaction import ONE, Transaction, field_name, is_too_far_ahead

MOST = 1_000
"""Transactions in one request."""

MOST_FAULTS = 10
"""Faults that are told of one transaction; of the others their number."""

COUNTED = 1_000
"""With more faults than this something is no transaction at all: only their number is told."""

Kind = Literal["json", "lines"]
KINDS: dict[str, Kind] = {"application/json": "json", "application/x-ndjson": "lines"}

# A list with a bad one is read again, one by one: the first fault is enough to know, and a body has room for millions.
_LIST = TypeAdapter(Annotated[list[Transaction], FailFast()])


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
    batch = Batch(1)
    _add(batch, 0, body)
    return batch


def _lines(body: bytes) -> Batch:
    lines = {number: line for number, line in enumerate(body.split(b"\n"), 1) if line.strip()}
    batch = Batch(_bounded(len(lines)))
    for number, line in lines.items():
        _add(batch, number, line)
    return batch


def _list(body: bytes) -> Batch:
    with contextlib.suppress(ValidationError):
        found = _LIST.validate_json(body)
        return Batch(_bounded(len(found)), dict(enumerate(found)))
    try:
        values = from_json(body)
    except ValueError as error:
        raise ProblemError(422, "the body is not JSON", errors=[{"field": "", "reason": f"Invalid JSON: {error}"}]) from None
    batch = Batch(_bounded(len(values)))
    for place, value in enumerate(values):
        _add(batch, place, to_json(value, inf_nan_mode="constants"))
    return batch


def _add(batch: Batch, place: int, content: bytes) -> None:
    try:
        batch.valid[place] = ONE.validate_json(content)
    except ValidationError as error:
        batch.faults += [{"place": place, **fault} for fault in faults(error, Transaction)]


def _bounded(count: int) -> int:
    if not count:
        raise ProblemError(422, "the body holds no transaction", errors=[{"field": "", "reason": "is empty"}])
    if count > MOST:
        raise ProblemError(413, f"a request holds {MOST:,} transactions at most; send them in several")
    return count


def faults(error: ValidationError, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return what is wrong with one object: `field` and `reason`, `MOST_FAULTS` of them and how many more there are."""
    count = error.error_count()
    if count > COUNTED:
        return [{"field": "", "reason": f"has {count:,} faults"}]
    told = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_FAULTS]
    found: list[dict[str, Any]] = [{"field": field_name(one["loc"], model), "reason": _reason(one)} for one in told]
    return [*found, {"field": "", "reason": f"and {count - MOST_FAULTS:,} faults more"}] if count > MOST_FAULTS else found


def _reason(one: ErrorDetails) -> str:
    return "is no field here" if one["type"] == "extra_forbidden" else one["msg"]
