#!/usr/bin/env bash
# Show what the stream job rejected, mend it, and send it again.
# Usage: bash/rejects.sh list [--limit N] [--json]
#        bash/rejects.sh replay [ID...] [--only-valid] [--set FIELD=VALUE]...
#        bash/rejects.sh replay [--only-valid] --file FILE
#   list     messages that were rejected and not sent again, with the reason of each
#   replay   send them again (all by default): with fields changed, or as a file says that list --json wrote and a person mended
# What is still no transaction stays rejected: a failure, unless --only-valid asks for the others only, as after a deployment that takes
# what the one before did not. A message in which a card number was masked is sent only when that field is changed.
# Exit codes: 0 all sent, or all that --only-valid asks for; 1 some are still rejected, 2 wrong usage, 3 refused, 6 Kafka or Postgres
# does not answer.
source "$(dirname "$0")/lib.sh"
py api.rejects "$@"
