#!/usr/bin/env bash
# Run the stream job in the foreground, or say how far behind it is.
# Usage: bash/stream.sh [run]
#        bash/stream.sh lag [--max N]
#        bash/stream.sh check | alive
#   run   score what arrives on the topic `transactions`, tell of it, and write the tables; until it is stopped (TERM)
#   lag   messages that arrived and are not scored, and not in the tables, by partition; above N (none by default): exit code 1
#   check whether the job works on this machine: it lives, and no query stands still with something before it
#   alive whether it lives
# Stopped or killed anywhere, the next start goes on where the last one was.
# Exit codes: 0 stopped or within the limit, 1 failed or above it, 3 refused, 4 another job holds a table, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
case ${1:-run} in
run) py api.stream ;;
lag) shift && py api.lag "$@" ;;
check) py etl.stack.serve check stream ;;
alive) py etl.stack.serve alive stream ;;
*) usage >&2 && exit 2 ;;
esac
