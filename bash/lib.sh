#!/usr/bin/env bash
# Shared by every verb: strict mode, help, logging, and Python of the locked environment.
# Usage: source "$(dirname "$0")/lib.sh"
set -Eeuo pipefail
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
VENV=${WAREHOUSE_VENV:-$ROOT/.venv}

log() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Print the comment block at the top of the calling script.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }
case "${1:-}" in -h | --help)
  usage
  exit 0
  ;;
esac

# Run a module of this project in the locked environment: py etl.extract full
py() {
  [ -x "$VENV/bin/python" ] || die "no environment in $VENV; run bash/setup.sh first"
  "$VENV/bin/python" -m "$@"
}
