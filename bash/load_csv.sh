#!/usr/bin/env bash
# Load CSV files into the source (Postgres, schema bank): new rows are inserted, rows that differ updated, nothing is deleted.
# Usage: bash/load_csv.sh full|incremental FILE...
#   full         many new rows: the table is locked while they are written, foreign keys are checked once at the end
#   incremental  new and changed rows: readers and writers go on
# The header tells the table: its columns without updated_at, in any order; customers, terminals, transactions, fraud_reports.
# Files are loaded parents first, each all or nothing; loading a file twice changes nothing. Empty fields are NULL.
# Bad lines go to ops.rejects (database warehouse) with file, line and reason, card numbers masked; the good ones load.
# Exit codes: 0 loaded; 2 wrong usage; 3 a file is empty, all bad or has a wrong header; 4 another load of the table runs; 6 no Postgres.
source "$(dirname "$0")/lib.sh"
py etl.load_csv "$@"
