"""Alerts as the stream job writes them, and a file of channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl.settings import settings

ALERT: dict[str, Any] = {
    "transaction_id": 7001,
    "customer_id": 42,
    "terminal_id": 9,
    "transacted_at": "2026-03-01T10:00:00.000000Z",
    "amount": "199.90",
    "currency": "EUR",
    "channel": "online",
    "device": "mobile",
    "fraud_probability": 0.9712345678901234,
    "risk_level": "HIGH",
    "model_name": "card_fraud",
    "model_version": 3,
    "reasons": [{"feature": "amount", "contribution": 2.5, "description": "amount <of> the transaction"}],
    "scored_at": "2026-03-01T10:00:01.500000Z",
    "received_at": "2026-03-01T10:00:00.200000Z",
}


def alert(transaction_id: int = 7001, **other: Any) -> bytes:
    return json.dumps({**ALERT, "transaction_id": transaction_id, **other}).encode()


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, channels: dict[str, Any], **other: Any) -> Path:
    """Write a file of channels and let the settings name it."""
    path = folder / "notify.yaml"
    path.write_text(yaml.safe_dump({"channels": channels, **other}))
    monkeypatch.setenv("WAREHOUSE_NOTIFY_FILE", str(path))
    settings.cache_clear()
    return path
