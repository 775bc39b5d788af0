#!/usr/bin/env bash
# Make, remove and show tables of the database sandbox, the one where analysts may write.
# Usage: bash/sandbox.sh create NAME "SELECT ..." | create NAME -f FILE
#        bash/sandbox.sh drop NAME
#        bash/sandbox.sh list
# The SELECT runs on the readers server, with its rights and limits; its rows become sandbox.NAME, whole or not at all. All tables
# share the room of sandbox_quota_mb; bash/maintain.sh removes those older than sandbox_keep_days.
# Exit codes: 0 done; 1 the SELECT failed, 2 wrong usage, 3 refused (a name that is taken, no room),
#             4 another run makes or removes a table, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
py etl.sandbox "$@"
