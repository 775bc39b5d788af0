-- What was loaded, rejected, reconciled and checked on each day, by table.
-- Usage:  bash/marts.sh
{{ config(day='checked_on') }}
WITH told AS (
    SELECT
        cast(recorded_at AS date) AS checked_on,
        table_name,
        cast(state = 'published' AS int) AS batches,
        cast(state = 'failed' AS int) AS failed_batches,
        if(state = 'published', row_count, 0) AS loaded_rows,
        0 AS rejected_rows,
        0 AS reconciled_parts,
        0 AS unequal_parts,
        0 AS checks,
        0 AS failed_errors,
        0 AS failed_warnings
    FROM {{ source('ops', 'batches') }}
    UNION ALL
    SELECT
cast(rejected_at AS date),
table_name,
0,
0,
0,
1,
0,
0,
0,
0,
0
    FROM {{ source('ops', 'rejects') }}
    UNION ALL
    SELECT
cast(reconciled_at AS date),
table_name,
0,
0,
0,
0,
1,
cast(NOT is_equal AS int),
0,
0,
0
    FROM {{ source('ops', 'reconciliations') }}
    UNION ALL
    SELECT
        cast(checked_at AS date),
        table_name,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        cast(NOT is_passed AND severity = 'error' AS int),
        cast(NOT is_passed AND severity = 'warn' AS int)
    FROM {{ source('ops', 'checks') }}
)

SELECT
    checked_on,
    table_name,
    sum(batches) AS batches,
    sum(failed_batches) AS failed_batches,
    sum(loaded_rows) AS loaded_rows,
    sum(rejected_rows) AS rejected_rows,
    sum(reconciled_parts) AS reconciled_parts,
    sum(unequal_parts) AS unequal_parts,
    sum(checks) AS checks,
    sum(failed_errors) AS failed_errors,
    sum(failed_warnings) AS failed_warnings
FROM told
GROUP BY checked_on, table_name
