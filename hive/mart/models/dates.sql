-- Every day of the years that the other marts have days of: Power BI's date table, and its 'now'.
-- Usage:  bash/marts.sh
{{ config(day='none') }}
WITH known AS (
    SELECT transacted_on AS known_on FROM {{ ref('fraud_daily') }}
    UNION
    SELECT checked_on FROM {{ ref('data_quality_daily') }}
),

spanned AS (
    SELECT explode(sequence(trunc(min(known_on), 'YEAR'), make_date(year(max(known_on)), 12, 31))) AS dated_on FROM known
)

SELECT
    dated_on,
    year(dated_on) AS calendar_year,
    concat(year(dated_on), '-Q', quarter(dated_on)) AS calendar_quarter,
    date_format(dated_on, 'yyyy-MM') AS calendar_month,
    weekday(dated_on) + 1 AS weekday,
    date_format(dated_on, 'EEEE') AS weekday_name,
    weekday(dated_on) >= 5 AS is_weekend,
    datediff(cast({{ as_of() }} AS date), dated_on) AS days_ago
FROM spanned
