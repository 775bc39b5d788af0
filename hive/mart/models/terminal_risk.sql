-- Each terminal as it stands now: the last 30 days, and frauds among those days whose labels have arrived.
-- Usage:  bash/marts.sh
{{ config(day='none') }}
WITH now AS (
    SELECT {{ as_of() }} AS as_of
),

recent AS (
    SELECT
        s.*,
        n.as_of,
        s.transacted_at > n.as_of - INTERVAL 30 DAYS AS is_last_30d,
        s.transacted_at <= n.as_of - make_dt_interval({{ var('delay_days') }}) AS is_labelled,
        s.is_fraud AND s.reported_at <= n.as_of AS is_known_fraud
    FROM {{ ref('scored_transactions') }} AS s
    CROSS JOIN now AS n
    WHERE
        s.transacted_at <= n.as_of
        AND s.transacted_at > n.as_of - make_dt_interval({{ var('delay_days') }}) - INTERVAL 30 DAYS
        -- The files of those days.
        AND s.transacted_on >= date_sub(cast({{ as_of() }} AS date), {{ var('delay_days') }} + 30)
),

counted AS (
    SELECT
        terminal_id,
        cast(max(as_of) AS date) AS as_of_on,
        count_if(is_last_30d) AS transactions_30d,
        count(DISTINCT CASE WHEN is_last_30d THEN customer_id END) AS customers_30d,
        count_if(is_last_30d AND is_predicted_fraud) AS predicted_frauds_30d,
        count_if(is_last_30d AND risk_level = 'HIGH') AS high_risk_30d,
        round(avg(CASE WHEN is_last_30d THEN fraud_probability END), 6) AS mean_probability_30d,
        count_if(is_labelled) AS labelled_transactions,
        count_if(is_labelled AND is_known_fraud) AS labelled_frauds,
        max(CASE WHEN is_known_fraud THEN transacted_at END) AS last_fraud_at,
        max(transacted_at) AS last_transacted_at
    FROM recent
    GROUP BY terminal_id
)

SELECT
    k.terminal_id,
    m.terminal_name,
    m.country,
    m.category,
    k.as_of_on,
    k.transactions_30d,
    k.customers_30d,
    k.predicted_frauds_30d,
    k.high_risk_30d,
    k.mean_probability_30d,
    k.labelled_transactions,
    k.labelled_frauds,
    CASE WHEN k.labelled_transactions > 0 THEN round(k.labelled_frauds / k.labelled_transactions, 6) END AS labelled_fraud_share,
    k.last_fraud_at,
    k.last_transacted_at,
    row_number() OVER (
        ORDER BY k.labelled_frauds DESC, k.predicted_frauds_30d DESC, k.mean_probability_30d DESC NULLS LAST, k.terminal_id ASC
    ) AS risk_rank
FROM counted AS k
LEFT JOIN {{ source('core', 'terminals') }} AS m ON k.terminal_id = m.terminal_id
