#!/usr/bin/env bash
# Build feature.transactions from core: all of it, or what has changed since the last build.
# Usage: bash/features.sh full|incremental
# Exit codes: 0 built or nothing new, 2 wrong usage, 3 refused (a table of core is missing or empty), 4 another run builds them,
#             6 a server does not answer.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/submit.sh" ml.build_features "$@"
