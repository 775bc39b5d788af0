#!/usr/bin/env bash
# All of bash/test.sh, then what takes longer: minutes of writers, kills and maintenance; random kills; a large file; images really built
# and run; YARN; manifests and deployment on a cluster.
# Usage: bash/test_all.sh
# Needs: docker or podman, npm, and what bash/test_node.sh -h names. Without them it ends with exit code 2 before it has begun.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/test_node.sh" --check
for needed in npm "${CONTAINER_TOOL:-docker podman}"; do
  # shellcheck disable=SC2086 # one of several names is enough
  command -v $needed >/dev/null || {
    printf 'error: %s: not on the path; install one to run these tests\n' "$needed" >&2
    exit 2
  }
done
"$ROOT/bash/test.sh"
cd "$ROOT"
"$VENV/bin/pytest" -q -m slow
"$ROOT/bash/test_node.sh"
