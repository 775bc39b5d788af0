-- Create the readers' copy of ops.rejects in Postgres; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.rejects
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.rejects (
    reject_id bigint COMMENT 'Key',
    run_id string COMMENT 'Run that rejected it',
    table_name string COMMENT 'Table that it was meant for',
    origin string COMMENT 'File, source table or topic that it came from',
    line bigint COMMENT 'Line in that file',
    key string COMMENT 'Key of the row, where it has one',
    column_name string COMMENT 'Column that is wrong, where it is one',
    reason string COMMENT 'Why it was rejected',
    rejected_at timestamp COMMENT 'When it was rejected (UTC)',
    replayed_at timestamp COMMENT 'When a message of the stream lane was sent again (UTC)'
)
USING ICEBERG
COMMENT 'Rows that could not be held, copied from Postgres (ops.rejects) without what was received: that may name a person'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
