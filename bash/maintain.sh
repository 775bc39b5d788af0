#!/usr/bin/env bash
# Fold in small and delete files and expire old snapshots of the Iceberg tables; fold the stream's files of raw.events;
# remove tables of the sandbox older than the setting sandbox_keep_days;
# remove from ops.notifications what was sent or kept quiet longer ago than the setting notifications_keep_days.
# Usage: bash/maintain.sh [DATABASE.TABLE...] [--keep-days N]
# Exit codes: 0 done, 2 wrong usage, 3 refused, 4 another run holds a table, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
py etl.maintain "$@"
