-- Count and sum up the events of two folders, the old one and the one that is to take its place.
-- Parameters: before, after
-- Reads:  files of raw.events      Writes: -
-- Usage:  bash/maintain.sh raw.events
SELECT
    0 AS folder,
    count(*) AS event_count,
    sum(cast(xxhash64(topic_partition, topic_offset, received_at, message_key, message, is_masked) AS decimal(38, 0))) AS content_hash
FROM PARQUET.`{{ before }}`
UNION ALL
SELECT
    1 AS folder,
    count(*) AS event_count,
    sum(cast(xxhash64(topic_partition, topic_offset, received_at, message_key, message, is_masked) AS decimal(38, 0))) AS content_hash
FROM PARQUET.`{{ after }}`
ORDER BY folder
