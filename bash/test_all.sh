#!/usr/bin/env bash
# All of bash/test.sh, then what takes longer: minutes of writers, kills and maintenance; random kills; a large file; a lock left in the metastore.
# Usage: bash/test_all.sh
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/test.sh"
cd "$ROOT"
"$VENV/bin/pytest" -q -m slow
