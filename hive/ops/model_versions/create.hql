-- Create the readers' copy of the versions in MLflow; bash/marts.sh makes its content anew.
-- Parameters: -
-- Reads:  -      Writes: ops.model_versions
-- Usage:  bash/marts.sh
CREATE TABLE IF NOT EXISTS ops.model_versions (
    model_name string COMMENT 'Registered model',
    model_version int COMMENT 'Version',
    algorithm string COMMENT 'Name of its declaration in ml/params.yaml',
    train_from date COMMENT 'First day of training',
    train_to date COMMENT 'The day after the last day of training',
    average_precision double COMMENT 'On its test week, when it was trained',
    is_champion boolean COMMENT 'Whether it scores now',
    registered_at timestamp COMMENT 'When it was registered (UTC)'
)
USING ICEBERG
COMMENT 'Versions of the registered model, copied from the tables of MLflow'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
