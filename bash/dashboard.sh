#!/usr/bin/env bash
# Serve the dashboard on this machine: a web page of the marts, asked of the readers server. Until it is stopped (Ctrl-C).
# Usage: bash/dashboard.sh [--port N] [--no-browser]
#   --port N       where it listens; by default the setting dashboard_port. Only this machine reaches it
#   --no-browser   do not open a browser
# Exit codes: 0 stopped, 2 wrong usage, 3 refused (the port is taken, Streamlit is not installed).
source "$(dirname "$0")/lib.sh"
py etl.dashboard "$@"
