#!/usr/bin/env bash
# Show what the stream job rejected, mend it, and send it again.
# Usage: bash/rejects.sh list [--limit N] [--json]
#        bash/rejects.sh replay [ID...] [--set FIELD=VALUE]...
#        bash/rejects.sh replay --file FILE
#   list     messages that were rejected and not sent again, with the reason of each
#   replay   send them again (all by default): with fields changed, or as a file says that list --json wrote and a person mended
# What is still no transaction stays rejected. A message whose card number was masked cannot be sent as it is.
# Exit codes: 0 all sent, 1 some are still rejected, 2 wrong usage, 3 refused, 6 Kafka or Postgres does not answer.
source "$(dirname "$0")/lib.sh"
py api.rejects "$@"
