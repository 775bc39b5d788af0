#!/usr/bin/env bash
# Show the tables that analysts made in the catalog sandbox of the readers server, when each is removed, and how much room is taken.
# Usage: bash/sandbox.sh
# Tables are made and dropped by HiveQL, as in bash/query.sh "create table sandbox.ana.night as select ..."; docs/analysts.md. They share
# the room of sandbox_quota_mb; bash/maintain.sh removes those older than sandbox_keep_days.
# Exit codes: 0 shown, 2 wrong usage, 3 refused, 6 HDFS does not answer.
source "$(dirname "$0")/lib.sh"
py etl.sandbox "$@"
