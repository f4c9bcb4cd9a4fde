/* queue_pg:migration_holders */
-- Who has held something of ours for longest, autovacuum last: the lock of migrations, or any lock on a table or view.
select
  a.pid, coalesce(nullif(a.application_name, ''), a.backend_type, 'unknown') as name, coalesce(a.state, 'of another role') as state,
  greatest(0, extract(epoch from clock_timestamp() - a.xact_start))::float8 as seconds,
  bool_or(l.locktype = 'advisory') as migrates
from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.granted and l.pid <> pg_backend_pid() and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and (
    l.locktype = 'advisory' and l.objsubid = 1
      and l.classid::bigint = 7310579610401947744 >> 32 and l.objid::bigint = 7310579610401947744 & 4294967295
    or l.locktype = 'relation'
      and l.relation in (select c.oid from pg_class c where c.relnamespace = to_regnamespace('queue_pg')))
group by a.pid, a.application_name, a.backend_type, a.state, a.xact_start
-- Autovacuum goes away for whoever waits for its table, and is on some table of ours most of the time.
order by a.backend_type is not distinct from 'autovacuum worker', a.xact_start nulls last
limit 1
