#!/usr/bin/env bash
# Train models on the newest week whose labels are known, register them, and let the better one be the champion.
# Usage: bash/train.sh [MODEL...] [--as-of TIME]
#   MODEL    declared in ml/params.yaml; without any, those of its `train`
#   --as-of  train with what was known then (ISO 8601); by default the newest transaction
# Exit codes: 0 trained (also when the champion stays), 3 refused, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.train "$@"
