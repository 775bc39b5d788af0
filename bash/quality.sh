#!/usr/bin/env bash
# Check the data: schema, values, keys, freshness, volume, distribution; show what was found.
# Usage: bash/quality.sh [show | check [sources] [marts]]
#   show    the newest outcome of each check, those that failed first
#   check   run the checks of core (sources), of predictions and marts (marts), or both; what fails is told by the notifier's channels
# Exit codes: 0 every check of severity error held, 1 one did not.
source "$(dirname "$0")/lib.sh"
py api.quality "$@"
