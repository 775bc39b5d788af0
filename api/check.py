"""Exit code 0 when the HTTP application answers: an image's health check, without a program of its own."""

from __future__ import annotations

import sys
import urllib.request

from etl.settings import settings

if __name__ == "__main__":
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{settings().port('api')}/health/live", timeout=3).close()
    except OSError as error:
        sys.exit(f"error: the API does not answer: {error}")
