-- Create the readers' copy of ops.reconciliations in Postgres; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.reconciliations
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.reconciliations (
    run_id string COMMENT 'Run that compared',
    table_name string COMMENT 'Table',
    part string COMMENT 'Day or key range, or all',
    source_rows bigint COMMENT 'Rows of the source',
    loaded_rows bigint COMMENT 'Rows of core',
    rejected_rows bigint COMMENT 'Rows that were rejected',
    pending_rows bigint COMMENT 'Rows that wait for the next load or sweep',
    is_equal boolean COMMENT 'Whether both sides hold the same',
    detail string COMMENT 'What differs',
    reconciled_at timestamp COMMENT 'When they were compared (UTC)'
)
USING ICEBERG
COMMENT 'Comparisons of source and core, copied from Postgres (ops.reconciliations)'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
