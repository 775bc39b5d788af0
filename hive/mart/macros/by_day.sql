-- A materialization of dbt: text outside of its blocks is no part of any statement.
-- Usage:  bash/marts.sh
{#
  Materialization `by_day`: a table of which a run replaces the days whose rows have changed, in one commit.

  A day has changed where number and sum of hashes of the rows that the model gives differ from those that the table holds, so it
  does not matter why: a late row, a label, a correction, a deletion, a killed run. A run after which nothing differs commits nothing.
  Of marts by transacted_on only those days are compared that can have changed, where bash/marts.sh knows them: it tells in MARTS_CHANGES
  its `run`, `days` and `labels` (of a model whose config says `changes: labels`), and `keys`, of the transactions on those days, each as
  closed ranges of SQL literals. What is not told, or null, is everything. Ranges of transacted_on find their files in what a model reads.

  Days are the column `day` (by default transacted_on); with `day: none` the table is replaced whole where anything differs. A file
  costs a reader some milliseconds, so small marts have files of a month (`files`, by default) and the months of those days are replaced.

  Columns, types and comments come from the model's YAML, which is the one place where they stand.
#}
{% materialization by_day, adapter='spark' %}
  {%- set day = config.get('day', default='transacted_on') -%}
  {%- set day = none if day == 'none' else day -%}
  {%- set files = config.get('files', default='month') -%}
  {%- set partitions = '' if not day else 'partitioned by (' ~ (day if files == 'day' else 'months(' ~ day ~ ')') ~ ')' -%}
  {%- set new = this.identifier ~ '__new' -%}
  {%- set columns = model.columns.values() | list -%}
  {%- set existing = load_relation(this) -%}
  {%- set told = fromjson(env_var('MARTS_CHANGES', '{}')) -%}
  {%- set ranges = told.get(config.get('changes', default='days')) if day == 'transacted_on' else none -%}
  {%- set only = within(day, ranges) if ranges is not none else 'true' -%}

  {{ run_hooks(pre_hooks) }}

  {%- if told.get('run') -%}
    {# By that bash/marts.sh tells its commits from those of others, as of a server that still writes for a run that was killed. #}
    {%- call statement('run') -%} set `spark.sql.iceberg.snapshot-property.run` = {{ told.run }} {%- endcall -%}
  {%- endif -%}
  {%- call statement('new') -%}
    create or replace temporary view {{ new }} as
    select
    {%- for column in columns %}
      cast({{ column.name }} as {{ column.data_type }}) as {{ column.name }}{{ "," if not loop.last }}
    {%- endfor %}
    from (
    {{ compiled_code }}
    )
  {%- endcall -%}

  {%- if existing is none -%}
    {%- call statement('create') -%}
      create table {{ this }} (
      {%- for column in columns %}
        {{ column.name }} {{ column.data_type }}{{ " not null" if is_required(column) }} comment '{{ escaped(column.description) }}'{{ "," if not loop.last }}
      {%- endfor %}
      ) using iceberg {{ partitions }} comment '{{ escaped(model.description) }}'
      tblproperties (
        'format-version' = '2', 'write.parquet.compression-codec' = 'zstd', 'write.distribution-mode' = 'hash',
        'write.metadata.delete-after-commit.enabled' = 'true', 'write.metadata.previous-versions-max' = '20'
      )
    {%- endcall -%}
    {%- set where = 'true' -%}
  {%- elif has_other_columns(existing, columns) -%}
    {%- if ranges is not none -%}
      {{ exceptions.raise_compiler_error(this ~ ' has other columns than are declared, and not because of the code: somebody altered it; run bash/marts.sh --full') }}
    {%- endif -%}
    {#
      One commit as well; what it held before stays in its history. NOT NULL is lost: Spark takes a query's columns as nullable, Iceberg
      lets none be made required later, and a table declared first and filled then would be seen empty between two commits.
    #}
    {%- call statement('replace') -%}
      create or replace table {{ this }} using iceberg {{ partitions }} comment '{{ escaped(model.description) }}'
      tblproperties ('format-version' = '2', 'write.parquet.compression-codec' = 'zstd', 'write.distribution-mode' = 'hash')
      as select * from {{ new }}
    {%- endcall -%}
    {%- for column in columns -%}
      {%- call statement('comment') -%}
        alter table {{ this }} alter column {{ column.name }} comment '{{ escaped(column.description) }}'
      {%- endcall -%}
    {%- endfor -%}
    {%- set where = '' -%}
  {%- elif should_full_refresh() -%}
    {%- set where = 'true' -%}
  {%- else -%}
    {%- set where = changed(this, new, day, files, columns, only) if ranges != [] else '' -%}
  {%- endif -%}

  {%- if where -%}
    {%- call statement('main') -%}
      insert into {{ this }} replace where {{ where }} select * from {{ new }} where {{ where }}
    {%- endcall -%}
  {%- else -%}
    {%- call noop_statement('main', 'nothing has changed') -%}
      select 'nothing has changed'
    {%- endcall -%}
  {%- endif -%}

  {%- call statement('drop') -%} drop view if exists {{ new }} {%- endcall -%}
  {{ run_hooks(post_hooks) }}
  {{ return({'relations': [this]}) }}
{% endmaterialization %}


{% macro escaped(text) -%}
  {{ (text | string | trim).replace('\\', '\\\\').replace("'", "\\'").replace('\n', ' ') }}
{%- endmacro %}


{% macro is_required(column) -%}
  {%- for constraint in column.constraints or [] if constraint.type == 'not_null' -%} yes {%- endfor -%}
{%- endmacro %}


{% macro has_other_columns(relation, columns) -%}
  {%- set have = [] -%}
  {%- for row in run_query('describe ' ~ relation).rows if row[0] and not row[0].startswith('#') -%}
    {%- do have.append(row[0] ~ ' ' ~ row[1]) -%}
  {%- endfor -%}
  {%- set want = [] -%}
  {%- for column in columns -%} {%- do want.append(column.name ~ ' ' ~ column.data_type) -%} {%- endfor -%}
  {# Of a partitioned table `describe` tells the partition's columns once more at the end. #}
  {{ return(have[:want | length] != want) }}
{%- endmacro %}


{# The condition that names the days whose rows differ; empty where none does. #}
{% macro changed(old, new, day, files, columns, only) -%}
  {%- set hash -%}
    sum(cast(xxhash64(
    {%- for column in columns -%} {{ column.name }}, isnull({{ column.name }}){{ ", " if not loop.last }} {%- endfor -%}
    ) as decimal(38, 0)))
  {%- endset -%}
  {%- set key = day or '1' -%}
  {%- set found = run_query(
    'select coalesce(n.k, o.k) from (select ' ~ key ~ ' as k, count(*) as c, ' ~ hash ~ ' as h from ' ~ new ~ ' where ' ~ only ~ ' group by 1) as n '
    ~ 'full join (select ' ~ key ~ ' as k, count(*) as c, ' ~ hash ~ ' as h from ' ~ old ~ ' where ' ~ only ~ ' group by 1) as o on n.k = o.k '
    ~ 'where not (n.c <=> o.c and n.h <=> o.h)'
  ).columns[0].values() -%}
  {%- if not found -%} {{ return('') }} {%- endif -%}
  {%- if not day -%} {{ return('true') }} {%- endif -%}
  {%- set parts = [] -%}
  {%- for one in found -%}
    {%- if files == 'day' -%}
      {%- set part = day ~ " = date '" ~ one ~ "'" -%}
    {%- else -%}
      {%- set first = "date '" ~ (one | string)[:7] ~ "-01'" -%}
      {%- set part = '(' ~ day ~ ' >= ' ~ first ~ ' and ' ~ day ~ ' < add_months(' ~ first ~ ', 1))' -%}
    {%- endif -%}
    {%- if part not in parts -%} {%- do parts.append(part) -%} {%- endif -%}
  {%- endfor -%}
  {{ return(parts | sort | join(' or ')) }}
{%- endmacro %}
