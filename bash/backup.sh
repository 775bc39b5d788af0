#!/usr/bin/env bash
# Back up the warehouse's own state into a folder: Postgres (metastore, warehouse, mlflow), HDFS, models' files. No secrets.
# Usage: bash/backup.sh FOLDER [--with-source]
#   FOLDER         outside of the data folder; one folder is one backup, and again into the same copies only what is new
#   --with-source  also the database bank; it is the bank's, and only the local stack's is backed up here
# Writers wait for the last part only, some seconds. Stopped, it goes on where it was when it is run again.
# Exit codes: 0 backed up, 2 wrong usage, 3 refused, 4 a table is written for too long or another run works in FOLDER,
#             6 a server does not answer (run again), 1 anything else; the backup before stays whole.
source "$(dirname "$0")/lib.sh"
py etl.backup "$@"
