#!/usr/bin/env bash
# Score what has no prediction yet by the champion, into mart.predictions. Twice changes nothing.
# Usage: bash/score.sh [--as-of TIME] [--full]
#   --as-of  score transactions up to then (ISO 8601)
#   --full   look at every day, not only at those that changed since the last run
# Exit codes: 0 scored or nothing to do, 3 refused (no champion, other features), 4 another run is scoring or took this one's place,
#   6 a server does not answer.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.score "$@"
