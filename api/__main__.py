"""Serve the HTTP application: `python -m api`."""

from __future__ import annotations

import uvicorn

from etl.settings import settings

if __name__ == "__main__":
    # A stop lets requests under way end: within a pod's grace period.
    uvicorn.run("api.app:app", host=settings().api_host, port=settings().port("api"), timeout_graceful_shutdown=20, server_header=False)
