"""A notice about the data itself: which checks failed; sent through the notifier's channels as alerts are."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict


class FailedCheck(BaseModel):
    """One check that did not hold."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    table_name: str
    check_name: str
    severity: Literal["error", "warn"]
    observed: str


class Notice(BaseModel):
    """What one run of checks found."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    run_id: str
    checked_at: AwareDatetime
    failed_checks: list[FailedCheck]

    @property
    def idempotency_key(self) -> str:
        """What every message of this notice carries, the second time as well."""
        return f"checks-{self.run_id}"

    @property
    def customer_id(self) -> None:
        """Nobody's: a customer's quiet time does not hold it back."""
        return
