#!/usr/bin/env bash
# Set up, then lint, check types, and run the unit tests and the tests on the real servers. Under 20 minutes on two cores.
# Usage: bash/test.sh [quick | servers | PATH...]
#   quick     lint, types and unit tests only (under two minutes)
#   servers   tests on the real servers only
#   PATH      the tests there only, but for the slow ones
# Exit codes: 0 all passed, else 1 or the failed tool's.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/setup.sh"
cd "$ROOT"
PATH=$VENV/bin:$PATH
servers=(pytest -q -m "stack and not slow" tests/stack tests/jenkins)
case ${1:-} in
'' | quick) ;;
servers) exec "${servers[@]}" ;;
*) exec pytest -q -m "not slow" "$@" ;;
esac

log "lint"
ruff check .
ruff format --check .
shellcheck -x -P bash bash/*.sh docker/*.sh
shfmt -i 2 -d bash/*.sh docker/*.sh
sqlfluff lint --processes 2 sql hive
log "types"
mypy
log "unit tests"
# Each of the two has a Postgres of its own.
pytest -q -n 2 -m "not stack and not slow" --ignore tests/stack
[ "${1:-}" = quick ] && exit 0
log "tests on the real servers"
"${servers[@]}"
