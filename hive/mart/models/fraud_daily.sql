-- Volume and value by day and by where and how cards were used.
-- Usage:  bash/marts.sh
SELECT
    transacted_on,
    country,
    channel,
    device,
    category,
    currency,
    {{ volume_and_value() }}
FROM {{ ref('scored_transactions') }}
GROUP BY transacted_on, country, channel, device, category, currency
