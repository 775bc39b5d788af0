#!/usr/bin/env bash
# Fold in small and delete files and expire old snapshots of the Iceberg tables; fold the stream's files of raw.events.
# Usage: bash/maintain.sh [DATABASE.TABLE...] [--keep-days N]
source "$(dirname "$0")/lib.sh"
py etl.maintain "$@"
