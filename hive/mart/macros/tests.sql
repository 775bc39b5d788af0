-- Checks that the YAML of hive/mart/models names.
-- Usage:  bash/quality.sh check

{# Checks of data beyond those of dbt. Each gives the rows that are wrong; none is well. #}

{# Schema: the columns are those declared in YAML, with their types. #}
{% test declared_columns(model) %}
  {%- if execute -%}
    {%- set declared = (graph.sources.values() | list + graph.nodes.values() | list)
      | selectattr('relation_name', 'defined') | selectattr('relation_name', 'equalto', model | string) | list -%}
    {%- set have = {} -%}
    {%- for row in run_query('describe ' ~ model).rows if row[0] and not row[0].startswith('#') -%} {%- do have.update({row[0]: row[1]}) -%} {%- endfor -%}
    {%- set wrong = [] -%}
    {%- for column in declared[0].columns.values() if column.data_type and have.get(column.name) != column.data_type -%}
      {%- do wrong.append(column.name ~ ' is ' ~ (have.get(column.name) or 'missing') ~ ', declared ' ~ column.data_type) -%}
    {%- endfor -%}
    {%- if not declared -%} {{ exceptions.raise_compiler_error('nothing is declared of ' ~ model) }} {%- endif -%}
    select explode(array({%- for one in wrong -%} '{{ one }}'{{ ", " if not loop.last }} {%- endfor -%})) as wrong
  {%- else -%}
    select 1 as wrong where false
  {%- endif -%}
{% endtest %}

{# Values: a column, or an expression over a row, lies between two bounds, each included; empty is well. #}
{% test in_range(model, column_name, least=none, most=none) %}
  select {{ column_name }}
  from {{ model }}
  where {{ column_name ~ ' < ' ~ least if least is not none else 'false' }} or {{ column_name ~ ' > ' ~ most if most is not none else 'false' }}
{% endtest %}

{# Keys of more than one column. #}
{% test unique_together(model, columns) %}
  select {{ columns | join(', ') }} from {{ model }} group by {{ columns | join(', ') }} having count(*) > 1
{% endtest %}

{# Totals: a mart of sums holds, by day and currency, what the transactions that it sums do. #}
{% test sums_scored_transactions(model) %}
  with summed as (
    select transacted_on, currency, sum(transactions), sum(amount), sum(frauds), sum(fraud_amount), sum(predicted_frauds)
    from {{ model }} group by 1, 2
  ),
  counted as (
    select
      transacted_on, currency, count(*), sum(amount), count_if(is_fraud), coalesce(sum(amount) filter (where is_fraud), 0),
      count_if(is_predicted_fraud)
    from {{ ref('scored_transactions') }} group by 1, 2
  )
  (select * from summed except select * from counted) union all (select * from counted except select * from summed)
{% endtest %}

{#
  Totals: by day and currency there are as many rows, worth as much, as in core. Loads and the stream go on meanwhile, so a day counts
  where core holds what it held when the last build began.
#}
{% test holds_core_transactions(model) %}
  {%- set core = source('core', 'transactions') -%}
  {%- set found = run_query(
    'select snapshot_id from ' ~ core ~ '.snapshots where committed_at <= (select max(started_at) from ' ~ source('ops', 'runs')
    ~ " where verb = 'marts' and state = 'succeeded') order by committed_at desc limit 1"
  ) if execute -%}
  {%- set by_day = 'cast(transacted_at as date) as day, currency, struct(count(*), sum(amount)) as total' -%}
  with before as (
    select {{ by_day }} from {{ core }} {{ 'version as of ' ~ found.rows[0][0] if found and found.rows }} group by 1, 2
  ),
  now as (
    select {{ by_day }} from {{ core }} group by 1, 2
  ),
  held as (
    select {{ by_day }} from {{ model }} group by 1, 2
  )
  select day, currency
  from before full join now using (day, currency) full join held using (day, currency)
  where before.total <=> now.total and not now.total <=> held.total
{% endtest %}

{# The clock that data keep up with; where they lie in the past, the setting as_of. #}
{% macro clock() -%}
  {%- if env_var('MARTS_CLOCK', '') -%} timestamp '{{ env_var("MARTS_CLOCK", "") }}' {%- else -%} current_timestamp() {%- endif -%}
{%- endmacro %}

{# Age: rows still arrive. A load that finds nothing new is one as well, so freshness does not tell of a source that delivers no more. #}
{% test newest_within(model, moment, hours=26) %}
  select max({{ moment }}) as newest from {{ model }} where {{ moment }} <= {{ clock() }}
  having coalesce(max({{ moment }}) < {{ clock() }} - interval {{ hours }} hours, true)
{% endtest %}

{# Volume: the last day that is over has between `least` and `most` times the mean of the same weekday of the four weeks before. #}
{% test volume_like_weeks_before(model, moment, least=0.5, most=2) %}
  with newest as (
    select date_sub(cast(max({{ moment }}) as date), 1) as day from {{ model }} where {{ moment }} <= {{ clock() }}
  ),
  days as (
    select cast({{ moment }} as date) as day, count(*) as transactions
    from {{ model }}
    where {{ moment }} >= (select date_sub(day, 28) from newest)
    group by 1
  ),
  compared as (
    select
      coalesce(sum(d.transactions) filter (where d.day = n.day), 0) as transactions,
      avg(d.transactions) filter (where d.day < n.day) as mean_before
    from newest as n left join days as d on d.day <= n.day and datediff(n.day, d.day) % 7 = 0
  )
  select * from compared
  where transactions < {{ least }} * mean_before or transactions > {{ most }} * mean_before
{% endtest %}

{#
  Distribution: the population stability index of the newest days against those before, in thousandths of its usual unit.

  Sum over buckets of (p - q) ln(p / q); below 100 nothing has changed, above 250 much has. Source: N. Siddiqi, "Credit Risk Scorecards"
  (2006). Buckets are values, or the ranges between `edges`; each counts half a row more, so that none is empty. With fewer than `rows`
  rows on a side nothing is said.
#}
{% test stable_distribution(model, column_name, moment, edges=none, newest_days=7, days_before=28, rows=1000) %}
  with newest as (
    select max({{ moment }}) as moment from {{ model }} where {{ moment }} <= {{ clock() }}
  ),
  counted as (
    select
      {% if edges -%}
      case {% for edge in edges %} when {{ column_name }} < {{ edge }} then '{{ "%02d" | format(loop.index) }}' {% endfor %} else 'over' end
      {%- else -%} coalesce(cast({{ column_name }} as string), 'empty') {%- endif %} as bucket,
      count_if(t.{{ moment }} > n.moment - interval {{ newest_days }} days) + 0.5 as newly,
      count_if(t.{{ moment }} <= n.moment - interval {{ newest_days }} days) + 0.5 as before
    from {{ model }} as t cross join newest as n
    where t.{{ moment }} > n.moment - interval {{ newest_days + days_before }} days and t.{{ moment }} <= n.moment
    group by 1
  ),
  shares as (
    select
      newly / sum(newly) over () as p, before / sum(before) over () as q,
      least(sum(newly) over (), sum(before) over ()) as rows
    from counted
  )
  select round(1000 * sum((p - q) * ln(p / q))) as thousandths from shares where rows >= {{ rows }}
{% endtest %}
