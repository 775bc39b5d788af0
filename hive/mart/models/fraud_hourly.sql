-- As fraud_daily, by hour of the day.
-- Usage:  bash/marts.sh
SELECT
    transacted_on,
    transacted_hour,
    country,
    channel,
    device,
    category,
    currency,
    {{ volume_and_value() }}
FROM {{ ref('scored_transactions') }}
GROUP BY transacted_on, transacted_hour, country, channel, device, category, currency
