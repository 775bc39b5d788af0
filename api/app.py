"""The HTTP application: health of the process so far; transactions come with the real-time lane."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI(title="card-fraud warehouse", description="Transactions one by one, and what became of them.")


@app.get("/health/live")
def live() -> dict[str, str]:
    """Answer while the process works."""
    return {"status": "live"}


@app.get("/health/ready")
def ready() -> dict[str, str]:
    """Answer while requests can be served: nothing behind the process is needed for that yet."""
    return {"status": "ready"}
