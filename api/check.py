"""Exit code 0 when the HTTP application answers: an image's health check, without a program of its own."""

from __future__ import annotations

import ssl
import sys
import urllib.request

from etl.settings import settings

if __name__ == "__main__":
    # Whether the certificate is the right one for a name, clients ask; here the process is asked whether it works.
    scheme = "https" if settings().api_tls_certificate_file else "http"
    unchecked = ssl._create_unverified_context()  # noqa: S323
    try:
        urllib.request.urlopen(f"{scheme}://127.0.0.1:{settings().port('api')}/health/live", timeout=3, context=unchecked).close()  # noqa: S310
    except OSError as error:
        sys.exit(f"error: the API does not answer: {error}")
