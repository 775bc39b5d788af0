#!/usr/bin/env bash
# Build the marts that people read: days that have changed since the last run, from core, the predictions and the warehouse's own records.
# Usage: bash/marts.sh [build [--full] | docs]
#   --full   build every day anew; gives the same rows
#   docs     a page of every table, column and their lineage
source "$(dirname "$0")/lib.sh"
py ml.marts "$@"
