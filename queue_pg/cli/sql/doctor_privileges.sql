/* queue_pg:doctor_privileges */
-- What this role may not do although queue-pg needs it; no rows when all is well.
select needed.what
from (
  values
    ('usage of schema queue_pg', has_schema_privilege('queue_pg', 'usage')),
    ('select on queue_pg.jobs', has_table_privilege('queue_pg.jobs', 'select')),
    ('insert on queue_pg.jobs', has_table_privilege('queue_pg.jobs', 'insert')),
    ('select on queue_pg.finished_jobs', has_table_privilege('queue_pg.finished_jobs', 'select'))
) as needed (what, granted)
where not needed.granted
union all
select format('execute on %s', p.oid::regprocedure)
from pg_proc p
where p.pronamespace = 'queue_pg'::regnamespace and not has_function_privilege(p.oid, 'execute')
