-- Create the features of each transaction, as known at its time; ml/features.py says what each of them means.
-- Parameters: location, features (name, type, description of each), filled in by bash/features.sh
-- Reads:  -      Writes: feature.transactions
-- Usage:  bash/features.sh full
CREATE TABLE IF NOT EXISTS feature.transactions (
    transaction_id bigint COMMENT 'key, from the booking system',
    customer_id bigint COMMENT 'whose card it was',
    terminal_id bigint COMMENT 'where it was paid',
    transacted_at timestamp COMMENT 'time of the transaction, UTC',
    amount decimal(12, 2) COMMENT 'amount of the transaction; itself a feature'
    {%- for feature in features %},
    {{ feature.name }} {{ feature.type }} COMMENT {{ feature.description | literal }}
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
    -- Most features have more values than a dictionary of use; a small one gives up early.
    'write.parquet.dict-size-bytes' = '65536',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
