#!/usr/bin/env bash
# Send transactions into the real-time lane: the lines of a stream CSV, or what the simulator produces live.
# Usage: bash/stream_csv.sh FILE|--generate [--rate N] [--to api|kafka] [--count N] [--seed N] [--customers N] [--terminals N]
#   FILE        CSV with a header: the columns of a transaction, unnamed ones are left out; a time without a zone is UTC
#   --generate  new transactions of the bank of bash/simulate.sh (same --seed, --customers, --terminals), until stopped
#   --rate      transactions a second; by default 10 generated ones, a file as fast as it is taken
#   --to        api (default): POST /transactions with the key in api_key_file, by TLS with the authority in api_ca_file; kafka: the topic itself
#   --count     end after so many
# A line without transaction_id gets one that is the same in a second run, whatever became of other lines; one without a time gets
# the moment of its first arrival. Bad lines go to ops.rejects (database warehouse) with file, line and reason, card numbers masked;
# the good ones are sent. Without transaction_id a line that is changed after it was sent is another transaction, and equal lines of
# two files, which had better have a time, are one.
# Ctrl-C sends what is gathered and says how far it came. Run again after any end: the lane takes the same ids once.
# Exit codes: 0 all acknowledged or in ops.rejects; 2 wrong usage; 3 file, key or certificate refused; 6 a server is away; 130 stopped.
source "$(dirname "$0")/lib.sh"
py api.replay "$@"
