-- Create the table of events: every message of the topic `transactions` as it came in, valid or not.
-- Parameters: location
-- Reads:  -      Writes: raw.events
-- Usage:  bash/stream.sh
CREATE EXTERNAL TABLE IF NOT EXISTS raw.events (
    topic_partition int COMMENT 'Partition of the topic',
    topic_offset bigint COMMENT 'Offset in that partition',
    received_at timestamp COMMENT 'When the message was written to the topic (UTC)',
    message_key binary COMMENT 'Key of the message, card numbers masked; null where it has none',
    message binary COMMENT 'The message, byte by byte, card numbers masked',
    is_masked boolean COMMENT 'Whether digits were masked in the message or its key'
)
PARTITIONED BY (received_on date COMMENT 'Day on which the message arrived (UTC)')
STORED AS PARQUET
LOCATION '{{ location }}'
