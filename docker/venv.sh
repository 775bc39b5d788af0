#!/bin/sh
# Make /opt/venv from a lock file: what it names by hash and nothing else.
# Usage: venv.sh LOCK
set -eu
python3 -m venv /opt/venv
/opt/venv/bin/pip install --quiet --no-cache-dir --no-compile --disable-pip-version-check --require-hashes --no-deps -r "$1"
