#!/usr/bin/env bash
# One screen of freshness: per table the newest batch, watermark and rows; the last runs; the oldest open transaction.
# Usage: bash/status.sh
source "$(dirname "$0")/lib.sh"
py etl.status "$@"
