#!/usr/bin/env bash
# Check the data: schema, values, keys, freshness, volume, distribution; show what was found.
# Usage: bash/quality.sh [show | check [sources] [marts]]
#   show    the newest outcome of each check, those that failed first
#   check   run the checks of core (sources), of predictions and marts (marts), or both; what fails is told by the notifier's channels
# Exit codes: 0 every check of severity error held, 1 one did not, or dbt could not run, 2 wrong usage, 3 refused (a table is missing,
#             or the file of channels is wrong), 4 another run builds the marts or checks, 6 a server does not answer (run again).
source "$(dirname "$0")/lib.sh"
py api.quality "$@"
