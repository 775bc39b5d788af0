-- Each transaction with what its terminal and customer are, what is known of it, and what was predicted.
-- Usage:  bash/marts.sh
{{ config(files='day') }}
SELECT
    t.transaction_id,
    cast(t.transacted_at AS date) AS transacted_on,
    hour(t.transacted_at) AS transacted_hour,
    t.transacted_at,
    t.customer_id,
    t.terminal_id,
    t.amount,
    t.currency,
    t.channel,
    coalesce(t.device, 'unknown') AS device,
    coalesce(m.country, 'unknown') AS country,
    coalesce(m.category, 'unknown') AS category,
    coalesce(c.country, 'unknown') AS customer_country,
    t.lane,
    r.is_fraud,
    r.scenario,
    r.reported_at,
    p.model_name,
    p.model_version,
    p.fraud_probability,
    p.is_fraud AS is_predicted_fraud,
    p.risk_level,
    p.scored_at
FROM {{ source('core', 'transactions') }} AS t
LEFT JOIN {{ attributes('terminals') }} AS m ON t.terminal_id = m.terminal_id
LEFT JOIN {{ attributes('customers') }} AS c ON t.customer_id = c.customer_id
LEFT JOIN {{ source('core', 'fraud_reports') }} AS r ON t.transaction_id = r.transaction_id{{ and_changed('r.transaction_id') }}
LEFT JOIN {{ source('scoring', 'predictions') }} AS p ON t.transaction_id = p.transaction_id{{ and_changed('p.transaction_id') }}
