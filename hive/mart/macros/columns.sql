-- What the models call.
-- Usage:  bash/marts.sh

{# 'Now': the setting as_of, by default the newest transaction; bash/marts.sh says it (an environment variable: a dbt var would parse all anew). #}
{% macro as_of() -%}
  {%- if env_var('MARTS_AS_OF', '') -%} timestamp '{{ env_var("MARTS_AS_OF", "") }}'
  {%- else -%} (select max(transacted_at) from {{ ref('scored_transactions') }})
  {%- endif -%}
{%- endmacro %}


{# Terminals or customers, with the columns that the marts of days may read. #}
{% macro attributes(table) -%}
  (select {{ var('attributes')[table] | join(', ') }} from {{ source('core', table) }})
{%- endmacro %}


{# Condition that a column lies in one of some closed ranges. #}
{% macro within(column, ranges) -%}
  (
  {%- for low, high in ranges %}{{ column }} between {{ low }} and {{ high }}{{ " or " if not loop.last }}
  {%- else %}false{% endfor -%}
  )
{%- endmacro %}


{# For what is joined to the transactions: it holds for all rows of those on the days that can have changed (by_day.sql). #}
{% macro and_changed(key) -%}
  {%- set keys = fromjson(env_var('MARTS_CHANGES', '{}')).get('keys') -%}
  {%- if keys is not none %} AND {{ within(key, keys) }}{% endif -%}
{%- endmacro %}


{# Columns of volume and value that the daily and the hourly mart share. #}
{% macro volume_and_value() -%}
  count(*) as transactions,
  sum(amount) as amount,
  count_if(is_predicted_fraud is not null) as scored_transactions,
  count_if(is_fraud) as frauds,
  coalesce(sum(amount) filter (where is_fraud), 0) as fraud_amount,
  count_if(is_predicted_fraud) as predicted_frauds,
  coalesce(sum(amount) filter (where is_predicted_fraud), 0) as predicted_fraud_amount,
  count_if(is_fraud and is_predicted_fraud) as caught_frauds,
  coalesce(sum(amount) filter (where is_fraud and is_predicted_fraud), 0) as caught_amount,
  count_if(is_fraud and not coalesce(is_predicted_fraud, false)) as missed_frauds,
  coalesce(sum(amount) filter (where is_fraud and not coalesce(is_predicted_fraud, false)), 0) as missed_amount,
  count_if(is_predicted_fraud and not coalesce(is_fraud, false)) as unconfirmed_alarms,
  count_if(risk_level = 'HIGH') as high_risk,
  count_if(risk_level = 'MEDIUM') as medium_risk
{%- endmacro %}
