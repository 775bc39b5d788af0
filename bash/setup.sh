#!/usr/bin/env bash
# Prepare this clone: locked virtual environment, jars, Java and Postgres checks. Twice is harmless.
# Usage: bash/setup.sh [--lock]
#   --lock   make requirements.lock anew from pyproject.toml
# Needs: bash, Python 3.11+ (with venv), Java 17 or 21 (installed by apt or brew where it is missing and that is allowed).
# Exit codes: 0 prepared, 1 something is missing or cannot be had (the sentence says what), 2 wrong usage, 3 refused.
source "$(dirname "$0")/lib.sh"
case "$*" in '' | --lock) ;; *)
  usage >&2
  exit 2
  ;;
esac

python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "no $python on PATH; install Python 3.11 or newer, or name it: PYTHON=python3.12 bash/setup.sh"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" --version) is too old; Python 3.11 or newer is needed"

# A stamp of the lock file makes the second set-up free, and a half-made environment is made again.
stamp=$VENV/.lock-sha256
lock_sum=$("$python" -c 'import hashlib,sys; print(hashlib.sha256(open(sys.argv[1],"rb").read()).hexdigest())' "$ROOT/requirements.lock")
if [ "$(cat "$stamp" 2>/dev/null)" != "$lock_sum" ]; then
  log "environment: installing the locked packages into $VENV (once, about a minute)"
  [ -x "$VENV/bin/pip" ] || "$python" -m venv "$VENV" || die "python venv failed; on Debian: apt-get install python3-venv"
  # Compiled once here, or every start of a verb would compile its libraries again. uv installs ten times faster than pip; it comes from the same lock, checked by hash.
  awk '/^uv==/{p=1} p{print} p&&!/\\$/{exit}' "$ROOT/requirements.lock" |
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps -r /dev/stdin
  "$VENV/bin/uv" pip sync --quiet --compile-bytecode --require-hashes --python "$VENV/bin/python" "$ROOT/requirements.lock"
  printf '%s\n' "$lock_sum" >"$stamp"
fi
if [ "${1:-}" = --lock ]; then
  lock() {
    "$VENV/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header "$@"
  }
  cd "$ROOT"
  lock --all-extras --group servers --group api pyproject.toml -o requirements.lock
  # The images' parts of it, in the same versions.
  lock -c requirements.lock --no-annotate pyproject.toml -o docker/warehouse.lock
  lock -c requirements.lock --no-annotate --group servers -o docker/servers.lock
  lock -c requirements.lock --no-annotate --group api -o docker/api.lock
  log "requirements.lock is made anew; run bash/setup.sh to install it"
  exit 0
fi
py etl.stack.setup
