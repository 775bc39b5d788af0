#!/usr/bin/env bash
# Measure speed and memory on a stack of its own: extract beside other tools, loads, features, scores, a table ten times larger.
# Usage: bash/bench.sh [--input FILE] [--no-tenfold] | api | stream | marts | readers
#   Half an hour. Without --input as many rows as the Handbook has are simulated.
#   api    three minutes: what the API takes beside a bare FastAPI no-op, on the running stack; needs wrk
#   stream five minutes: how soon the real-time lane tells and writes at 200 a second, and how fast it catches up, on the demo's stack
#   marts  ten minutes: what Power BI's pages ask, one user and ten at once, on the running stack and its marts
#   readers six minutes: how much longer loads take beside readers that use every core, on the running stack
# Exit codes: 0 every bound is kept, 1 one is missed or a step failed.
source "$(dirname "$0")/lib.sh"
"$ROOT/bash/setup.sh"
case ${1:-} in
api | stream | marts | readers) py "tests.bench.$1" ;;
*) py tests.bench "$@" ;;
esac
