#!/usr/bin/env bash
# Measure models by the Fraud Detection Handbook's protocol: its published figures beside ours, and means of five weeks.
# Usage: bash/evaluate.sh [MODEL...] [--as-of TIME] [--smote]
#   MODEL    declared in ml/params.yaml; without any, those of its `compare`
#   --as-of  with the labels known then (ISO 8601); by default the newest transaction
#   --smote  compare class weights with SMOTE as well
# Exit codes: 0 measured, 3 refused, 6 a server does not answer.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.evaluate "$@"
