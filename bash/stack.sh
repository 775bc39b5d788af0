#!/usr/bin/env bash
# Start, stop and show the local servers: Postgres, HDFS, Hive Metastore, two SQL servers.
# Usage: bash/stack.sh up [--yarn] [--mlflow] [--kafka] [--realtime] | down | status | logs NAME | reset
#   up      start what does not run yet, in order; twice is harmless; also YARN, MLflow's page, the broker, or all of the real-time lane
#   down    stop every server; data stays
#   status  state, pid, memory and address of each; exit code 1 when one is down
#   logs    show a server's log
#   reset   stop and remove all data (jars and the Python environment stay)
# Exit codes: 0 done, 1 a server is down (status), 2 wrong usage, 3 refused (a port is taken, too little memory or room), 4 another bash/stack.sh is
#             at work, 6 a server did not start.
source "$(dirname "$0")/lib.sh"
py etl.stack.control "$@"
