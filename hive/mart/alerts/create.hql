-- Create the table of alerts: one row per transaction of HIGH risk, as it was when it was scored.
-- Parameters: location
-- Reads:  -      Writes: mart.alerts
-- Usage:  bash/score.sh, bash/stream.sh
CREATE TABLE IF NOT EXISTS mart.alerts (
    transaction_id bigint NOT NULL COMMENT 'Key; number of the transaction in the booking system, and of its alert',
    customer_id bigint NOT NULL COMMENT 'Customer, as at the time of scoring',
    terminal_id bigint NOT NULL COMMENT 'Terminal, as at the time of scoring',
    transacted_at timestamp NOT NULL COMMENT 'Moment of the transaction (UTC), as at the time of scoring',
    amount decimal(12, 2) NOT NULL COMMENT 'Amount, as at the time of scoring',
    currency string COMMENT 'Currency, ISO 4217',
    channel string COMMENT 'How the card was used: chip, contactless, magstripe, online, phone',
    device string COMMENT 'Kind of device that held the card or the order, where known',
    fraud_probability double NOT NULL COMMENT 'Probability of fraud that the model gave, 0 to 1',
    risk_level string NOT NULL COMMENT 'HIGH: the level from which on there is an alert',
    model_name string NOT NULL COMMENT 'Registered model that decided',
    model_version int NOT NULL COMMENT 'Version of that model',
    reasons ARRAY<STRUCT<feature: string, contribution: double>> NOT NULL
    COMMENT 'Features that raised the probability most, with their SHAP contributions in probability, highest first',
    scored_at timestamp NOT NULL COMMENT 'When it was scored (UTC)',
    lane string NOT NULL COMMENT 'batch or stream: which lane scored it'
)
USING ICEBERG
PARTITIONED BY (days(transacted_at) -- noqa: LT01,CP01
)
LOCATION '{{ location }}'
COMMENT 'One alert per transaction of HIGH risk. Rows are added, never rewritten; decisions are rows of core.fraud_reports.'
TBLPROPERTIES (
    'format-version' = '2',
    'write.parquet.compression-codec' = 'zstd',
    'write.metadata.delete-after-commit.enabled' = 'true',
    'write.metadata.previous-versions-max' = '20'
)
