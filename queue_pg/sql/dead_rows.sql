/* queue_pg:dead_rows */
select
  c.relname::text as name, pg_stat_get_dead_tuples(c.oid) as dead, pg_stat_get_live_tuples(c.oid) as live,
  pg_has_role(d.datdba, 'USAGE')
    or case when current_setting('server_version_num')::integer >= 170000 then has_table_privilege(c.oid, 'MAINTAIN')
      else pg_has_role(c.relowner, 'USAGE') end as may_vacuum
from pg_class c, pg_database d
where c.oid in ('queue_pg.jobs'::regclass, 'queue_pg.queue_counters'::regclass) and d.datname = current_database()
