#!/usr/bin/env bash
# Erase a customer's name and e-mail from raw, core and its snapshots, rejects, events and records; then search HDFS and the records again.
# Usage: bash/erase_customer.sh ID
# The bank goes first: its row must be deleted, or hold the setting erased_text as the name and no e-mail. What was done is in ops.erasures.
# Exit codes: 0 erased, or erased already, 2 wrong usage, 3 refused (the source still has it, or nobody has this number), 4 another run
#             holds the table (run again later), 6 a server does not answer (run again), 1 something was found again, or anything else.
source "$(dirname "$0")/lib.sh"
py etl.erase "$@"
