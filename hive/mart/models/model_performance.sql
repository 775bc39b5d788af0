-- How good each model version's decisions were, by day, on days whose labels have arrived and that it was not trained on.
-- Usage:  bash/marts.sh
{{ config(changes='labels') }}
WITH labelled AS (
    SELECT
        s.transacted_on,
        s.customer_id,
        s.model_name,
        s.model_version,
        s.fraud_probability,
        s.is_predicted_fraud,
        coalesce(s.is_fraud AND s.reported_at <= {{ as_of() }}, false) AS is_fraud,
        s.transacted_on >= v.train_to AS is_after_training
    FROM {{ ref('scored_transactions') }} AS s
    INNER JOIN {{ source('ops', 'model_versions') }} AS v ON s.model_name = v.model_name AND s.model_version = v.model_version
    WHERE
        -- A day is over with its last microsecond, and that one's label is final `delay_days` later (as in ml/datasets.py).
        s.transacted_on < cast({{ as_of() }} - make_dt_interval({{ var('delay_days') }}) + INTERVAL 1 MICROSECOND AS date)
        AND NOT (s.transacted_on >= v.train_from AND s.transacted_on < v.train_to)
),

ranked AS (
    SELECT
        *,
        rank() OVER (PARTITION BY transacted_on, model_name, model_version ORDER BY fraud_probability)
        + (count(*) OVER (PARTITION BY transacted_on, model_name, model_version, fraud_probability) - 1) / 2.0 AS ascending_rank
    FROM labelled
),

counted AS (
    SELECT
        transacted_on,
        model_name,
        model_version,
        first(is_after_training) AS is_after_training,
        count(*) AS transactions,
        count_if(is_fraud) AS frauds,
        count_if(is_predicted_fraud) AS predicted_frauds,
        count_if(is_fraud AND is_predicted_fraud) AS caught_frauds,
        count_if(is_fraud AND NOT is_predicted_fraud) AS missed_frauds,
        count_if(is_predicted_fraud AND NOT is_fraud) AS false_alarms,
        -- Mann and Whitney's statistic: how often a fraud scores above another transaction, ties as half.
        (sum(ascending_rank) FILTER (WHERE is_fraud) - count_if(is_fraud) * (count_if(is_fraud) + 1) / 2.0)
        / nullif(count_if(is_fraud) * count_if(NOT is_fraud), 0) AS roc_auc
    FROM ranked
    GROUP BY transacted_on, model_name, model_version
),

cards AS (
    SELECT
        transacted_on,
        model_name,
        model_version,
        customer_id,
        max(is_fraud) AS is_compromised,
        row_number() OVER (
            PARTITION BY transacted_on, model_name, model_version ORDER BY max(fraud_probability) DESC, customer_id
        ) AS card_rank
    FROM labelled
    GROUP BY transacted_on, model_name, model_version, customer_id
),

checked AS (
    SELECT
        transacted_on,
        model_name,
        model_version,
        count_if(is_compromised) AS compromised_cards,
        count_if(is_compromised AND card_rank <= {{ var('top_cards') }}) AS compromised_cards_checked
    FROM cards
    GROUP BY transacted_on, model_name, model_version
)

SELECT
    k.*,
    round(k.caught_frauds / nullif(k.predicted_frauds, 0), 6) AS precision,
    round(k.caught_frauds / nullif(k.frauds, 0), 6) AS recall,
    round(2 * k.caught_frauds / nullif(k.predicted_frauds + k.frauds, 0), 6) AS f1,
    c.compromised_cards,
    c.compromised_cards_checked,
    round(c.compromised_cards_checked / {{ var('top_cards') }}, 6) AS card_precision
FROM counted AS k
INNER JOIN checked AS c
    ON k.transacted_on = c.transacted_on AND k.model_name = c.model_name AND k.model_version = c.model_version
