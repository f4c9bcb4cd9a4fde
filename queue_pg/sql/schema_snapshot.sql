/* queue_pg:schema_snapshot */
-- One line per object, in the words of the catalog, sorted bytewise. Partitions that maintenance makes are left out.
with tables as (
  select c.oid, c.relname, c.relkind
  from pg_class c
  where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'p', 'v')
    and not exists (select from queue_pg.partitions p where p.name = c.relname)
),
lines as (
  select format('%s %s: %s', case t.relkind when 'v' then 'view' when 'p' then 'partitioned table' else 'table' end,
    t.relname, coalesce(obj_description(t.oid, 'pg_class'), '-')) as line
  from tables t
  union all
  select format('column %s.%s %s%s%s: %s', t.relname, a.attname, format_type(a.atttypid, a.atttypmod),
    case when a.attnotnull then ' not null' else '' end,
    coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''), coalesce(col_description(t.oid, a.attnum), '-'))
  from tables t
  join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
  union all
  select format('constraint %s.%s %s', t.relname, c.conname, pg_get_constraintdef(c.oid))
  from tables t join pg_constraint c on c.conrelid = t.oid and c.contype <> 'n'
  union all
  select format('index %s', pg_get_indexdef(i.indexrelid))
  from tables t join pg_index i on i.indrelid = t.oid
  union all
  select format('trigger %s', pg_get_triggerdef(g.oid))
  from tables t join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal
  union all
  select format('function %s(%s) returns %s: %s', p.proname, pg_get_function_arguments(p.oid),
    pg_get_function_result(p.oid), coalesce(obj_description(p.oid, 'pg_proc'), '-'))
  from pg_proc p where p.pronamespace = 'queue_pg'::regnamespace
  union all
  select format('type %s: %s', t.typname, string_agg(e.enumlabel, ', ' order by e.enumsortorder))
  from pg_type t join pg_enum e on e.enumtypid = t.oid
  where t.typnamespace = 'queue_pg'::regnamespace group by t.typname
)
select replace(line, E'\n', ' ') from lines order by line collate "C"
