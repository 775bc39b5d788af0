"""One alert as it stands on the topic `alerts`: what the stream job writes and the notifier sends."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from api.transaction import Key


def _round(value: float) -> float:
    # More digits say nothing, and a long run of them may look like a card number.
    return round(value, 6)


Number = Annotated[float, Field(strict=True, allow_inf_nan=False), AfterValidator(_round)]


class Reason(BaseModel):
    """A feature that speaks for fraud, and how much."""

    feature: str
    contribution: Number
    description: str


class Alert(BaseModel):
    """A transaction of high risk; its id is the transaction's."""

    # A newer stream job may tell more. Messages of errors must not repeat what came in.
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    transaction_id: Key
    customer_id: Key
    terminal_id: Key
    transacted_at: AwareDatetime
    amount: Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]
    currency: str
    channel: str
    device: str | None
    fraud_probability: Annotated[Number, Field(ge=0, le=1)]
    risk_level: str
    model_name: str
    model_version: Annotated[int, Field(strict=True)]
    reasons: list[Reason]
    scored_at: AwareDatetime
    received_at: AwareDatetime

    @property
    def idempotency_key(self) -> str:
        """What every message of this alert carries, the second time as well."""
        return f"alert-{self.transaction_id}"
