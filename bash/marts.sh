#!/usr/bin/env bash
# Build the marts that people read: days that have changed since the last run, from core, the predictions and the warehouse's own records.
# Usage: bash/marts.sh [build [--full] | docs]
#   --full   build every day anew; gives the same rows
#   docs     a page of every table, column and their lineage
# Exit codes: 0 built, 1 a mart was not built or dbt could not run, 2 wrong usage, 3 refused (a table that they are built from is
#             missing), 4 another run builds or checks them, 6 a server does not answer (run again).
source "$(dirname "$0")/lib.sh"
py ml.marts "$@"
