#!/usr/bin/env bash
# Take published batches into core, then bring the features up to core.
# Usage: bash/transform.sh full|incremental [TABLE...]
#   full         again from each table's newest full batch, and all features anew
#   incremental  only what is not taken yet
# With tables named, the features are left for bash/features.sh.
# Exit codes: as of bash/extract.sh
source "$(dirname "$0")/lib.sh"
py etl.transform "$@"
if [ $# -eq 1 ]; then "$ROOT/bash/features.sh" "$1"; fi
