#!/usr/bin/env bash
# Extract tables and take them into core, in one process: bash/extract.sh and the core part of bash/transform.sh.
# Usage: bash/load.sh full|incremental [TABLE...]
# Exit codes: as of bash/extract.sh
source "$(dirname "$0")/lib.sh"
py etl.load "$@"
