#!/usr/bin/env bash
# Deploy an overlay of k8s/ to the cluster of kubectl's context: show the difference, apply it, wait, try the API and a score run,
# and go back to what ran before when any of that fails.
# Usage: bash/deploy.sh OVERLAY [--model-version N] [--tag TAG] [--timeout SECONDS] [--yes]
#   OVERLAY          a folder of k8s/overlays, or the path of one elsewhere
#   --model-version  which fraud-score image scores; by default the champion's
#   --tag            of the other images; by default the version in pyproject.toml
#   --timeout        for each roll-out and for the score run (600)
#   --yes            do not ask
# Exit codes: 0 deployed, 1 failed and rolled back (the sentence says what failed), 2 wrong usage, 3 refused (no kubectl, overlay, secret
# or champion, nobody to ask), 4 another deployment has begun meanwhile, 6 the cluster or Postgres does not answer.
source "$(dirname "$0")/lib.sh"
py ml.deploy "$@"
