"""`bash/dashboard.sh`: checks what the dashboard needs, then lets Streamlit serve it on this machine only."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path

from etl.errors import RefusedError
from etl.log import run_main
from etl.settings import settings

ADDRESS = "127.0.0.1"
"""Loopback only: the page shows what the readers may see to whoever reaches it."""
APP = Path(__file__).with_name("app.py")
# As arguments, which neither a file nor the environment of this user overrides.
OPTIONS: dict[str, str | list[str]] = {
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "viewer",
    "global.developmentMode": "false",
    "server.address": ADDRESS,
    # Another host's name that points to loopback (DNS rebinding) is refused.
    "server.allowedHosts": [ADDRESS, "localhost"],
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.enableStaticServing": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "0",
    "server.showEmailPrompt": "false",
    "theme.metricValueFontSize": "1.5rem",
    # Named for both: one for all would keep the page from following the system's light or dark.
    "theme.light.primaryColor": "#3b82c4",
    "theme.dark.primaryColor": "#3b82c4",
}


def command(port: int, has_browser: bool) -> list[str]:
    """Return the command that serves the dashboard."""
    given = OPTIONS | {"server.port": str(port), "browser.serverAddress": ADDRESS} | ({} if has_browser else {"server.headless": "true"})
    flags = [f"--{name}={value}" for name, values in given.items() for value in ([values] if isinstance(values, str) else values)]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *flags]


def refuse_what_cannot_be(port: int) -> None:
    """Look whether Streamlit is there and the port is free.

    Raises
    ------
    RefusedError
        Naming what is in the way.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise RefusedError("the package streamlit, which the dashboard needs, is not in this environment; run bash/setup.sh")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise RefusedError(f"port {port} of the dashboard cannot be had: {error.strerror}; name another with --port") from error


def port_number(text: str) -> int:
    """Read a port that an ordinary user may take."""
    number = int(text)
    if not 1024 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port lies between 1024 and 65535")
    return number


def main() -> None:
    """Parse the command line and become Streamlit."""
    parser = argparse.ArgumentParser(prog="bash/dashboard.sh", description=__doc__)
    parser.add_argument("--port", type=port_number, default=settings().port("dashboard"), help="where it listens")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    arguments = parser.parse_args()
    refuse_what_cannot_be(arguments.port)
    told = command(arguments.port, not arguments.no_browser)
    os.execv(told[0], told)


if __name__ == "__main__":
    run_main(main)
