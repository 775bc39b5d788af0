#!/usr/bin/env bash
# One screen of freshness: per table the newest batch, watermark and rows; the last runs; the oldest open transaction.
# Usage: bash/status.sh
# Exit codes: 0 shown, 2 wrong usage, 3 refused, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
py etl.status "$@"
