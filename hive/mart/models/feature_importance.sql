-- What raised the probability of transactions of MEDIUM and HIGH risk, by day and model version.
-- Usage:  bash/marts.sh
WITH reasons AS (
    SELECT
        cast(p.transacted_at AS date) AS transacted_on,
        p.model_name,
        p.model_version,
        p.transaction_id,
        r.position,
        r.reason.feature,
        r.reason.contribution
    FROM {{ source('scoring', 'predictions') }} AS p
    LATERAL VIEW posexplode(p.reasons) r AS position, reason
    WHERE p.risk_level IN ('MEDIUM', 'HIGH')
)

SELECT
    transacted_on,
    model_name,
    model_version,
    feature,
    count(*) AS transactions,
    count_if(position = 0) AS first_reasons,
    round(sum(contribution), 6) AS contribution
FROM reasons
GROUP BY transacted_on, model_name, model_version, feature
