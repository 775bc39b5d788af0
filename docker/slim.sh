#!/bin/sh
# Take from /opt/venv what no program of an image uses: installer, tests, headers, debug symbols; compile what programs load.
# Usage: slim.sh MODULE...
#   MODULE   compiled are these and what they import
set -eu
cd /opt/venv/lib/python3*/site-packages
rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth ../../../bin/pip*
find . -type d \( -name tests -o -name include -o -name __pycache__ \) -not -path './pyspark/*' -prune -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete
# Arrow's RPC; Spark's Scala shell, RocksDB as a store of its streaming state, QUIC: used by nothing here.
rm -rf pyarrow/libarrow_flight.so* pyarrow/*flight*.so* pyspark/examples pyspark/data
rm -rf pyspark/jars/connect-repl pyspark/jars/rocksdbjni-* pyspark/jars/netty-codec-native-quic-*
# Wheels' own copies of libraries (*.libs) were moved about after linking: stripped, they do not load.
find . -name '*.so*' -type f -not -path '*.libs/*' -not -path './pyspark/*' -exec strip --strip-unneeded {} +
PYTHONDONTWRITEBYTECODE='' /opt/venv/bin/python -c 'import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]' "$@"
