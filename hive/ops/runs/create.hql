-- Create the readers' copy of ops.runs in Postgres; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.runs
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.runs (
    run_id string COMMENT 'Key',
    verb string COMMENT 'Verb that ran, or part of one',
    state string COMMENT 'running, succeeded or failed',
    started_at timestamp COMMENT 'When it began (UTC)',
    ended_at timestamp COMMENT 'When it ended (UTC); empty while it runs, or where it was killed',
    seconds double COMMENT 'How long it took',
    error string COMMENT 'Why it failed'
)
USING ICEBERG
COMMENT 'Runs of the verbs, copied from Postgres (ops.runs); nothing reads them to decide'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
