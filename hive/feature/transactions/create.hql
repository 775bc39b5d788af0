-- Create the features of each transaction, as known at its time; ml/features.py says what each of them means.
-- Parameters: location, features (name, type, description of each), filled in by bash/features.sh
-- Reads:  -      Writes: feature.transactions
-- Usage:  bash/features.sh full
CREATE TABLE IF NOT EXISTS feature.transactions (
    transaction_id bigint NOT NULL COMMENT 'key, from the booking system',
    customer_id bigint NOT NULL COMMENT 'whose card it was',
    terminal_id bigint NOT NULL COMMENT 'where it was paid',
    transacted_at timestamp COMMENT 'time of the transaction, UTC',
    amount decimal(12, 2) COMMENT 'amount of the transaction; itself a feature'
    {%- for feature in features %},
    {{ feature.name }} {{ feature.type }} NOT NULL COMMENT {{ feature.description | literal }}
    {%- endfor %}
)
USING ICEBERG
PARTITIONED BY (days(transacted_at) -- noqa: LT01,CP01
)
LOCATION '{{ location }}'
COMMENT 'Point-in-time features, one row per transaction'
TBLPROPERTIES (
    'format-version' = '2',
    'write.distribution-mode' = 'hash',
    -- One open file for each day of a task costs less than sorting wide rows.
    'write.spark.fanout.enabled' = 'true',
    -- Trying dictionaries on features costs a third of the writing and saves a twentieth of the bytes.
    'parquet.enable.dictionary' = 'false',
    'write.parquet.compression-codec' = 'zstd',
    'write.parquet.compression-level' = '1',
    -- Bounds of the columns that people filter by.
    'write.metadata.metrics.default' = 'none',
    'write.metadata.metrics.column.transaction_id' = 'full',
    'write.metadata.metrics.column.customer_id' = 'full',
    'write.metadata.metrics.column.terminal_id' = 'full',
    'write.metadata.metrics.column.transacted_at' = 'full',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
