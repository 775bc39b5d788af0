-- Create the readers' copy of ops.batches in Postgres; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.batches
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.batches (
    run_id string COMMENT 'Run that extracted it',
    table_name string COMMENT 'Table',
    batch bigint COMMENT 'Number of the batch',
    kind string COMMENT 'full, incremental, deletes or repair',
    range_from timestamp COMMENT 'Cursor from which on rows were read (UTC)',
    next_from timestamp COMMENT 'Where the next extract begins (UTC)',
    row_count bigint COMMENT 'Rows in it',
    rejected_count bigint COMMENT 'Rows that it could not hold',
    bytes bigint COMMENT 'Size of its files',
    seconds double COMMENT 'How long the extract took',
    state string COMMENT 'published, failed or dropped',
    error string COMMENT 'Why it failed',
    recorded_at timestamp COMMENT 'When this was noted (UTC)'
)
USING ICEBERG
COMMENT 'Batches of extracts, copied from Postgres (ops.batches)'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
