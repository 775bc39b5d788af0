"""One transaction as it comes in from outside: the model that the API and the stream job share.

Its JSON Schema stands in `api/transaction.v1.schema.json`, made anew by `python -m api.transaction > api/transaction.v1.schema.json`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

from etl.card_numbers import mask_card_numbers

AHEAD = dt.timedelta(days=1)
"""How far a transaction may lie after its arrival: 'now' of features and training is the newest transaction."""

CENT = Decimal("0.01")
AMOUNT: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 9999999999.99, "multipleOf": 0.01},
        {"type": "string", "pattern": "^[0-9]{1,10}(\\.[0-9]{1,2})?$"},
    ]
}
"""An amount as clients are to write it; pydantic's own schema takes an empty string."""
EARLIEST, LATEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
_PLAIN = re.compile(r"(?!.*\d.*\d.*\d.*\d)[A-Za-z_]\w{0,39}", re.ASCII)
_UTC = TypeAdapter(dt.datetime).validate_json('"1970-01-01T00:00:00Z"').tzinfo
"""The zone of what pydantic reads in UTC: a class of its own."""


def _no_card_number(value: str) -> str:
    if len(value) >= 13 and mask_card_numbers(value) != value:
        raise PydanticCustomError("card_number", "may be a card number, which must not be sent")
    return value


def _in_utc(value: dt.datetime) -> dt.datetime:
    return value if value.tzinfo == _UTC else value.astimezone(dt.UTC)


def _key_is_no_card_number(value: int) -> int:
    # Most keys are shorter: this runs for three fields of each transaction.
    if value >= 10**12:
        _no_card_number(str(value))
    return value


def _in_cents(value: Decimal) -> Decimal:
    # One way to write an amount, whether it came as 1E+2, 100 or -0.
    cents = value.quantize(CENT)
    if cents != value:
        raise PydanticCustomError("decimal_places", "has more than two decimal places")
    return abs(cents)


class _Moment:
    """A time with its zone, from `EARLIEST` to `LATEST`; of parts of pydantic that run outside Python: a third of the time."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> core_schema.CoreSchema:
        # pydantic takes a number, also one in a string, for seconds since 1970: it may be a card number.
        text = core_schema.custom_error_schema(
            core_schema.str_schema(pattern="^[0-9]{4}-"),
            custom_error_type="iso8601",
            custom_error_message="is no date and time as ISO 8601 writes them",
        )
        moment = core_schema.datetime_schema(tz_constraint="aware", ge=EARLIEST, le=LATEST)
        found = core_schema.json_or_python_schema(
            json_schema=core_schema.chain_schema([text, moment]),
            python_schema=core_schema.chain_schema([core_schema.is_instance_schema(dt.datetime), moment]),
        )
        return core_schema.no_info_after_validator_function(_in_utc, found)


Key = Annotated[int, Field(strict=True, ge=0, lt=2**63), AfterValidator(_key_is_no_card_number)]


class Transaction(BaseModel):
    """A card transaction, as the booking system sends it."""

    # Messages of errors must not repeat what came in.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, title="Transaction", ser_json_temporal="iso8601")

    transaction_id: Key = Field(description="Key from the booking system; the same key again is the same transaction")
    customer_id: Key = Field(description="Customer whose card was used")
    terminal_id: Key = Field(description="Terminal where it was used")
    transacted_at: Annotated[dt.datetime, _Moment, WithJsonSchema({"type": "string", "format": "date-time"})] | None = Field(
        None, description="Moment of the transaction, ISO 8601 with its zone; by default the moment of arrival"
    )
    amount: Annotated[Decimal, Field(ge=0, lt=10**10), AfterValidator(_in_cents), WithJsonSchema(AMOUNT, mode="validation")] = Field(
        description="Amount in units of the currency"
    )
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = Field(description="Currency, ISO 4217")
    channel: Literal["chip", "contactless", "magstripe", "online", "phone"] = Field(description="How the card was used")
    device: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_no_card_number)] | None = Field(
        None, description="Kind of device that held the card or the order, where known"
    )


ONE = TypeAdapter(Transaction)


def moment(value: dt.datetime) -> str:
    """Write a time of UTC as ISO 8601 with Z and microseconds."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_too_far_ahead(transaction: Transaction, received_at: dt.datetime) -> bool:
    """Tell whether a transaction lies more than `AHEAD` after its arrival."""
    at = transaction.transacted_at
    # Both are of UTC: the day alone tells it nearly always, in a tenth of the time.
    return at is not None and at.toordinal() > received_at.toordinal() and at > received_at + AHEAD


def field_name(location: tuple[int | str, ...], model: type[BaseModel] = Transaction) -> str:
    """Return the field that a fault of validation is about, empty where it is about the whole.

    A field that the model does not know is told only by a plain name: it may be anything, a card number too, and as long as a message.
    """
    name = str(location[0]) if location else ""
    return name if name in model.model_fields or not name or _PLAIN.fullmatch(name) else "(unknown)"


def schema() -> str:
    """Return the JSON Schema of a transaction."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ONE.json_schema()}
    return json.dumps(content, indent=2) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
