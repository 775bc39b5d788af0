{# 'Now': the moment that the setting as_of names, by default the newest transaction. #}
{% macro as_of() -%}
  {%- if var('as_of') -%} timestamp '{{ var("as_of") }}'
  {%- else -%} (select max(transacted_at) from {{ ref('scored_transactions') }})
  {%- endif -%}
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
