#!/bin/sh
# Make /opt/venv from a lock file: what it names by hash and nothing else, without installer, tests, headers and debug symbols.
# Usage: venv.sh LOCK [MODULE...]
#   MODULE   compiled are these and what they import: what programs load at their start
set -eu
python3 -m venv /opt/venv
/opt/venv/bin/pip install --quiet --no-cache-dir --no-compile --disable-pip-version-check --require-hashes --no-deps -r "$1"
shift
cd /opt/venv/lib/python3*/site-packages
rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth ../../../bin/pip*
find . -type d \( -name tests -o -name include -o -name __pycache__ \) -not -path './pyspark/*' -prune -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete
# Arrow's RPC and query plans, and RocksDB as a state store, are used by nothing here; QUIC is for other machines' processors.
rm -rf pyarrow/*flight* pyarrow/*substrait* pyspark/examples pyspark/data pyspark/jars/rocksdbjni-* pyspark/jars/netty-codec-native-quic-*
# Wheels' own copies of libraries (*.libs) were moved about after linking: stripped, they do not load.
find . -name '*.so*' -type f -not -path '*.libs/*' -not -path './pyspark/*' -exec strip --strip-unneeded {} +
if [ $# -gt 0 ]; then
  PYTHONDONTWRITEBYTECODE='' /opt/venv/bin/python -c 'import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]' "$@"
fi
