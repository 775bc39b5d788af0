#!/usr/bin/env bash
# Send alerts of the real-time lane to the channels of the setting notify_file: webhook, e-mail, SMS gateway, log.
# Usage: bash/notify.sh [run]
#        bash/notify.sh dead
#        bash/notify.sh retry [CHANNEL...]
#   run    in the foreground, until it is stopped (bash/stack.sh up --realtime runs one)
#   dead   print what could not be sent, and why; messages that are no alerts have no channel
#   retry  let a running notifier try dead letters again, of all channels or of some
# Exit codes: 0 done or stopped by SIGTERM, 2 wrong usage, 3 refused (the file of channels is wrong), 6 Postgres does not answer,
#             1 anything else; nothing is lost, run it again.
source "$(dirname "$0")/lib.sh"
py api.notify "$@"
