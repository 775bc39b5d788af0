#!/usr/bin/env bash
# Compare the source with core, row by row, under one snapshot of each; results go to ops.reconciliations.
# Usage: bash/reconcile.sh [TABLE...]
# Compared is what was written before the watermark; what waits for the next extract or sweep is reported apart.
# Exit codes: 0 equal, 2 wrong usage, 3 refused, 5 source and core differ (day or key range, and keys, are named),
#             6 a server does not answer (run again), 1 anything else.
source "$(dirname "$0")/lib.sh"
py etl.reconcile "$@"
