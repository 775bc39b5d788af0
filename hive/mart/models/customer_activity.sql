-- Each customer and currency as it stands now: what the card did in the last 7 and 30 days.
-- Usage:  bash/marts.sh
{{ config(day='none') }}
WITH now AS (
    SELECT {{ as_of() }} AS as_of
),

recent AS (
    SELECT
        s.*,
        n.as_of,
        s.transacted_at > n.as_of - INTERVAL 7 DAYS AS is_last_7d
    FROM {{ ref('scored_transactions') }} AS s
    CROSS JOIN now AS n
    WHERE
        s.transacted_at <= n.as_of
        AND s.transacted_at > n.as_of - INTERVAL 30 DAYS
        -- The files of those days.
        AND s.transacted_on >= date_sub(cast({{ as_of() }} AS date), 30)
)

SELECT
    customer_id,
    currency,
    max(customer_country) AS customer_country,
    cast(max(as_of) AS date) AS as_of_on,
    count_if(is_last_7d) AS transactions_7d,
    count(*) AS transactions_30d,
    coalesce(sum(amount) FILTER (WHERE is_last_7d), 0) AS amount_7d,
    sum(amount) AS amount_30d,
    max(amount) AS largest_amount_30d,
    count(DISTINCT terminal_id) AS terminals_30d,
    count(DISTINCT nullif(country, 'unknown')) AS countries_30d,
    count_if(country != customer_country AND 'unknown' NOT IN (country, customer_country)) AS abroad_30d,
    count_if(transacted_hour <= 6) AS at_night_30d,
    count_if(channel IN ('online', 'phone')) AS card_not_present_30d,
    count_if(is_predicted_fraud) AS predicted_frauds_30d,
    count_if(is_fraud AND reported_at <= as_of) AS frauds_30d,
    max(transacted_at) AS last_transacted_at
FROM recent
GROUP BY customer_id, currency
