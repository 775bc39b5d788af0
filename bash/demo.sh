#!/usr/bin/env bash
# Set up, start the local stack, run the whole warehouse on it and print a summary. Twice is harmless and fast.
# Usage: bash/demo.sh [--input FILE|DIR]
#   --input   Parquet or CSV with the columns of the Fraud Detection Handbook's data; without it, a simulated bank
# Stopped by Ctrl-C, it goes on where it was when it is run again.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/setup.sh"
py etl.demo "$@"
