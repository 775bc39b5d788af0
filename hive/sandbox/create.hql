-- Create a table of the sandbox over the one file that an analyst's SELECT gave.
-- Parameters: name, definitions (name and type of each column), location, created_at, created_by, rows
-- Reads:  -      Writes: sandbox.<name>
-- Usage:  bash/sandbox.sh create NAME "SELECT ..."
CREATE EXTERNAL TABLE sandbox.{{ name }} (
    {%- for column in definitions %}
    `{{ column.name }}` {{ column.type }} COMMENT 'As the SELECT gave it'{{ "," if not loop.last }}
    {%- endfor %}
)
COMMENT 'Made by an analyst; removed when it is older than sandbox_keep_days'
STORED AS PARQUET
LOCATION '{{ location }}'
TBLPROPERTIES (
    'sandbox.created_at' = '{{ created_at }}',
    'sandbox.created_by' = {{ created_by | literal }},
    'sandbox.rows' = '{{ rows }}'
)
