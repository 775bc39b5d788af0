#!/usr/bin/env bash
# All of bash/test.sh, then what takes longer: random kills, long random histories, the large file.
# Usage: bash/test_all.sh
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/test.sh"
cd "$ROOT"
"$VENV/bin/pytest" -q -m slow
