#!/usr/bin/env bash
# Run a file of one HiveQL statement on the loads server, its {{ parameters }} filled in.
# Usage: bash/run_hql.sh FILE [NAME=VALUE...] [--format table|csv|json] [--limit N]
source "$(dirname "$0")/lib.sh"
py etl.query run-hql "$@"
