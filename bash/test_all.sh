#!/usr/bin/env bash
# All of bash/test.sh, then what takes longer: minutes of writers, kills and maintenance; random kills; a large file; images really built
# and run; YARN; pipelines on the stack and their linter; manifests and deployment on a cluster.
# Usage: bash/test_all.sh
# Needs: root, docker or podman, Chromium and its driver (for the dashboard), the npm registry (for the linter), and what bash/test_node.sh -h
# names. What it can see to be missing ends it with exit code 2 before it has begun.
# Exit codes: 0 all passed, 2 something is missing and nothing was run, else 1 or the failed tool's.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/test_node.sh" --check
# shellcheck disable=SC2086 # one of several names is enough
command -v ${CONTAINER_TOOL:-docker podman} >/dev/null || {
  printf 'error: neither docker nor podman is on the path; tests of images need one of them\n' >&2
  exit 2
}
{ command -v chromium chromium-browser google-chrome && command -v chromedriver; } >/dev/null || {
  printf 'error: tests of the dashboard need Chromium and its driver; on Debian: apt-get install chromium chromium-driver\n' >&2
  exit 2
}
"$ROOT/bash/test.sh"
cd "$ROOT"
"$VENV/bin/pytest" -q -m slow
"$ROOT/bash/test_node.sh"
