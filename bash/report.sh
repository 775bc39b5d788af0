#!/usr/bin/env bash
# Write the report of the champion, one HTML file that needs no network.
# Usage: bash/report.sh [--as-of TIME] [--out FILE]
#   --as-of  with the labels known then (ISO 8601); by default the newest transaction
#   --out    by default <data_dir>/report/index.html
# Exit codes: 0 written, 3 refused (no champion), 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.report "$@"
