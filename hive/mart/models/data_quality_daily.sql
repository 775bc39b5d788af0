-- What was loaded, rejected, reconciled and checked on each day, by table.
-- Usage:  bash/marts.sh
{{ config(day='checked_on') }}
WITH told AS (
    SELECT
        recorded_at AS told_at,
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
        rejected_at AS told_at,
        table_name,
        0 AS batches,
        0 AS failed_batches,
        0 AS loaded_rows,
        1 AS rejected_rows,
        0 AS reconciled_parts,
        0 AS unequal_parts,
        0 AS checks,
        0 AS failed_errors,
        0 AS failed_warnings
    FROM {{ source('ops', 'rejects') }}
    UNION ALL
    SELECT
        reconciled_at AS told_at,
        table_name,
        0 AS batches,
        0 AS failed_batches,
        0 AS loaded_rows,
        0 AS rejected_rows,
        1 AS reconciled_parts,
        cast(NOT is_equal AS int) AS unequal_parts,
        0 AS checks,
        0 AS failed_errors,
        0 AS failed_warnings
    FROM {{ source('ops', 'reconciliations') }}
    UNION ALL
    SELECT
        checked_at AS told_at,
        -- The other records name tables of core without it.
        regexp_replace(table_name, '^core[.]', '') AS table_name,
        0 AS batches,
        0 AS failed_batches,
        0 AS loaded_rows,
        0 AS rejected_rows,
        0 AS reconciled_parts,
        0 AS unequal_parts,
        1 AS checks,
        cast(NOT is_passed AND severity = 'error' AS int) AS failed_errors,
        cast(NOT is_passed AND severity = 'warn' AS int) AS failed_warnings
    FROM {{ source('ops', 'checks') }}
)

SELECT
    cast(told_at AS date) AS checked_on,
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
