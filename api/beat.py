"""Exit code 0 while the stream job works: the probe of its pod."""

from __future__ import annotations

import sys
import time

from etl.stack.servers import STALE_SECONDS, heartbeat

if __name__ == "__main__":
    beat = heartbeat("stream")
    if not beat.exists() or time.time() - beat.stat().st_mtime > STALE_SECONDS:
        sys.exit(f"error: the stream job has not touched {beat} for {STALE_SECONDS} s; look at its log")
