#!/usr/bin/env bash
# Build feature.transactions from core: all of it, or what has changed since the last build.
# Usage: bash/features.sh full|incremental
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.build_features "$@"
