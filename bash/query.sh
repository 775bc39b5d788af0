#!/usr/bin/env bash
# Ask the readers server: bash/query.sh "select count(*) from core.transactions"
# Usage: bash/query.sh STATEMENT | -f FILE [--format table|csv|json] [--limit N]
# A table ends after 1,000 rows, or N, and says so; CSV and JSON (an object a line) give all, as they come. Ctrl-C ends the statement on
# the server. Limits of the server: settings readers_query_seconds and readers_result_mb.
# In both, equal names of columns are told apart (id, id_2). JSON: decimals are numbers with all their digits, NULL is null, NaN a text.
# CSV: NULL is nothing between the commas, an empty text is "".
# Exit codes: 0 answered; 1 the statement failed or was ended, 2 wrong usage, 3 refused, 6 the server does not answer, 130 interrupted.
source "$(dirname "$0")/lib.sh"
py etl.query query "$@"
