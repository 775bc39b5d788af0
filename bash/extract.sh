#!/usr/bin/env bash
# Extract tables from Postgres into HDFS, verify them and publish them in Hive as batches.
# Usage: bash/extract.sh full|incremental|deletes [--force] [TABLE...]
#        bash/extract.sh repair TABLE --from TIME --to TIME
#        bash/extract.sh watermark show|history [TABLE...]
#        bash/extract.sh watermark rewind TABLE --to BATCH [--force]
#   full         read whole tables
#   incremental  read what was written since the last batch; nothing new publishes nothing
#   deletes      publish the keys that are gone from the source, table by table: one that is refused stops no other
#   repair       read a range of a table again, by its time (else its cursor); TIME is UTC
#   watermark    how far each table has come; rewind keeps batch BATCH and drops what follows
# Exit codes: 0 done, 2 wrong usage, 3 refused (nothing of that table was written), 4 another run holds the table,
#             6 a server does not answer (run again), 1 anything else; tables are as they were.
source "$(dirname "$0")/lib.sh"
py etl.extract "$@"
