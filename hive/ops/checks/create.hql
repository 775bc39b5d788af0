-- Create the readers' copy of ops.checks in Postgres; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.checks
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.checks (
    run_id string COMMENT 'Run that checked',
    table_name string COMMENT 'Table that was checked',
    check_name string COMMENT 'What was checked',
    severity string COMMENT 'error stops the pipeline, warn does not',
    is_passed boolean COMMENT 'Whether it held',
    observed string COMMENT 'What was found',
    checked_at timestamp COMMENT 'When it was checked (UTC)'
)
USING ICEBERG
COMMENT 'Outcomes of checks of data, copied from Postgres (ops.checks)'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
