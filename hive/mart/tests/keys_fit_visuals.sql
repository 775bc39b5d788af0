-- Keys that a visual of Power BI would round: it holds numbers as doubles, exact up to 2^53 - 1.
-- Usage:  bash/quality.sh check marts
{{ config(severity='warn') }}
SELECT largest
FROM (
    SELECT greatest(max(transaction_id), max(customer_id), max(terminal_id)) AS largest FROM {{ ref('scored_transactions') }}
)
WHERE largest > 9007199254740991
