-- Create the table of predictions: one row per transaction, the decision taken when it was scored, never rewritten.
-- Parameters: location, features (name, type, description of each), filled in by bash/score.sh
-- Reads:  -      Writes: mart.predictions
-- Usage:  bash/score.sh
CREATE TABLE IF NOT EXISTS mart.predictions (
    transaction_id bigint NOT NULL COMMENT 'Key; number of the transaction in the booking system',
    customer_id bigint NOT NULL COMMENT 'Customer, as at the time of scoring',
    terminal_id bigint NOT NULL COMMENT 'Terminal, as at the time of scoring',
    transacted_at timestamp NOT NULL COMMENT 'Moment of the transaction (UTC), as at the time of scoring',
    amount decimal(12, 2) NOT NULL COMMENT 'Amount, as at the time of scoring',
    model_name string NOT NULL COMMENT 'Registered model that decided',
    model_version int NOT NULL COMMENT 'Version of that model',
    fraud_probability double NOT NULL COMMENT 'Probability of fraud that the model gave, 0 to 1',
    is_fraud boolean NOT NULL COMMENT 'Whether the probability reached the threshold of fraud',
    risk_level string NOT NULL COMMENT 'LOW, MEDIUM or HIGH, by the thresholds of the model version',
    reasons ARRAY<STRUCT<feature: string, contribution: double>> NOT NULL
    COMMENT 'Features that raised the probability most, with their SHAP contributions in probability, highest first; empty for levels that are not explained',
    features STRUCT<
        {%- for feature in features %}
        {{ feature.name }}: {{ feature.type }} COMMENT {{ feature.description | literal }}{{ "," if not loop.last }}
        {%- endfor %}
    > NOT NULL COMMENT 'Features as the model read them; null for those that this version does not read',
    scored_at timestamp NOT NULL COMMENT 'When it was scored (UTC)'
)
USING ICEBERG
PARTITIONED BY (days(transacted_at) -- noqa: LT01,CP01
)
LOCATION '{{ location }}'
COMMENT 'One prediction per transaction: what the champion decided when it was scored. Rows are added, never rewritten.'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.parquet.compression-level' = '1',
    -- Trying dictionaries on contributions and features costs more than it saves; zstd makes the texts small.
    'parquet.enable.dictionary' = 'false',
    -- Bounds of the columns that people filter by; those of sixty more cost a tenth of the scoring.
    'write.metadata.metrics.default' = 'none',
    'write.metadata.metrics.column.transaction_id' = 'full',
    'write.metadata.metrics.column.customer_id' = 'full',
    'write.metadata.metrics.column.terminal_id' = 'full',
    'write.metadata.metrics.column.transacted_at' = 'full',
    'write.metadata.metrics.column.fraud_probability' = 'full',
    'write.metadata.metrics.column.scored_at' = 'full',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
