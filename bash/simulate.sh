#!/usr/bin/env bash
# Simulate a bank with three kinds of fraud and write CSV files for bash/load_csv.sh: same seed, same files.
# Usage: bash/simulate.sh [--out DIR] [--seed N] [--start DATE] [--days N] [--customers N] [--terminals N]
#                         [--incremental-days N] [--stream-days N] [--report-spread-days N]
# Writes full/TABLE.csv, incremental/DATE/TABLE.csv (new and changed rows of a day) and stream.csv below DIR (default
# simulated in the data folder); about 290,000 transactions a month from 5,000 customers, 0.8 % of them fraud.
# Exit codes: 0 written, 2 wrong usage, 3 refused (the folder holds other files, too few customers or days).
source "$(dirname "$0")/lib.sh"
py etl.simulator "$@"
