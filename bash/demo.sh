#!/usr/bin/env bash
# Set up, start the local stack, run the whole warehouse on it and print a summary. Twice is harmless and fast.
# Usage: bash/demo.sh [--compose] [--input FILE|DIR]
#        bash/demo.sh --realtime [--stream FILE] [--rate N] [--count N] [--to api|kafka]
#   --compose  on the servers of docker/compose.yaml, in a container: nothing but Docker is needed here
#   --input    Parquet or CSV with the columns of the Fraud Detection Handbook's data; without it, a simulated bank
#   --realtime on the local stack: the main job where it has not run yet, then a stream CSV (the simulated one) through the API,
#              and what became of it: ingested, scored, alerted, with how long each took
# Stopped by Ctrl-C, it goes on where it was when it is run again.
# Exit codes: 0 every step is done, 1 one failed (its own sentence stands above), 2 wrong usage, 3 refused,
#             6 a server does not answer, 130 interrupted.
source "$(dirname "$0")/lib.sh"
if [ "${1:-}" = --compose ]; then
  shift
  mount=()
  if [ "${1:-}" = --input ]; then
    mount=(--volume "$(realpath "${2:?--input needs a file or folder}"):/input:ro")
    set -- --input /input
  fi
  ${COMPOSE:-docker compose} -f "$ROOT/docker/compose.yaml" --profile verbs run --rm "${mount[@]}" warehouse python -m etl.demo --servers-run "$@"
  exit
fi
"$ROOT/bash/setup.sh"
if [ "${1:-}" = --realtime ]; then
  shift
  py api.demo "$@"
  exit
fi
py etl.demo "$@"
