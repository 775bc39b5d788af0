#!/usr/bin/env bash
# Run a file of one HiveQL statement on the loads server, its {{ parameters }} filled in.
# Usage: bash/run_hql.sh FILE [NAME=VALUE...] [--format table|csv|json] [--limit N]
# Exit codes: 0 answered, 1 the statement failed, 2 wrong usage, 3 refused, 6 the server does not answer, 130 interrupted.
source "$(dirname "$0")/lib.sh"
py etl.query run-hql "$@"
