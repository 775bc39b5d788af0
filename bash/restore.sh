#!/usr/bin/env bash
# Bring the warehouse back from a backup, into a stack that holds no table; its servers of the metastore are started anew.
# Usage: bash/restore.sh FOLDER [--force | --verify | --check]
#   --force   replace what the stack holds
#   --verify  only compare the backup's files with their sums
#   --check   only compare the rows of the warehouse's tables with the backup's
# Stopped, it goes on where it was when it is run again.
# Exit codes: 0 done, 2 wrong usage, 3 refused (nothing was touched: a damaged backup, another address, a stack that holds data),
#             4 a run writes a table, 5 rows differ from the backup's, 6 a server does not answer (run again), 1 anything else.
source "$(dirname "$0")/lib.sh"
py etl.restore "$@"
