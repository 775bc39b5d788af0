#!/usr/bin/env bash
# Make, list and remove the keys of the API's clients; a running API takes the change within a second.
# Usage: bash/api_keys.sh add CLIENT [--scope ingest|alerts|decisions|metrics|all]... [--rate N] [--burst N] [--out FILE] | list | remove CLIENT [--id ID]
#   add     print a new key, this once, or write it to FILE for its owner only; the client's older keys stay valid
#   list    clients with their keys' ids, scopes and rates (transactions a second)
#   remove  a client's keys, or the one with this id
# Exit codes: 0 done, 2 wrong usage, 3 refused: no such key, or the file of keys is damaged.
source "$(dirname "$0")/lib.sh"
py api.keys "$@"
