#!/usr/bin/env bash
# Ask the readers server: bash/query.sh "select count(*) from core.transactions"
# Usage: bash/query.sh STATEMENT | -f FILE [--format table|csv|json]
source "$(dirname "$0")/lib.sh"
py etl.query query "$@"
