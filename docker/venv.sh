#!/bin/sh
# Make /opt/venv from a lock file: what it names by hash and nothing else, compiled, without installer and tests.
# Usage: venv.sh LOCK
set -eu
python3 -m venv /opt/venv
/opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r "$1"
cd /opt/venv/lib/python3*/site-packages
rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth ../../../bin/pip*
# Packages' own tests, headers and the page of MLflow's server, which no image runs.
find . -type d \( -name tests -o -name include \) -not -path '*/pyspark/*' -prune -exec rm -rf {} +
rm -rf mlflow/server/js pyspark/examples pyspark/data
