"""Serve the HTTP application: `python -m api`. One process: it takes more than a broker beside it on two cores."""

from __future__ import annotations

import uvicorn

from api.app import create
from api.connection import Connection
from etl.log import run_main
from etl.settings import settings


def main() -> None:
    """Serve until SIGTERM; requests under way end first, within a pod's grace period."""
    here = settings()
    uvicorn.run(
        create(),
        host=here.api_host,
        port=here.port("api"),
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        # Paths and queries may hold anything.
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=1024,
        timeout_graceful_shutdown=20,
        ssl_certfile=here.api_tls_certificate_file,
        ssl_keyfile=here.api_tls_key_file,
    )


if __name__ == "__main__":
    run_main(main)
