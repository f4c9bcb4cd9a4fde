/* queue_pg:migration_locks */
-- All tables that the pending migrations touch, before anything is changed, in the order in which claims and finishes come to them:
-- who has passed one of them gets through, and who has not holds nothing that we wait for. In all it takes no longer than lock_timeout,
-- and from the second one on each is waited for half a deadlock_timeout at most. When somebody holds it and waits for us, because
-- theirs is another order, we are the ones who give up, and not they whom Postgres ends.
do $do$
declare
  v_table regclass;
  v_until timestamptz := clock_timestamp() + make_interval(secs => current_setting('queue_pg.migration_lock_ms')::float8 / 1000);
  v_most float8 := (select s.setting::float8 / 2 from pg_settings s where s.name = 'deadlock_timeout');
begin
  for v_table in
    select c.oid::regclass
    from pg_class c
    where c.relnamespace = to_regnamespace('queue_pg') and c.relkind in ('r', 'p') and not c.relispartition
      and c.relname = any (string_to_array(current_setting('queue_pg.migration_tables'), ','))
    order by
      array_position('{settings,kinds,queues,limits,unique_keys,jobs,finished_jobs}'::text[], c.relname::text), c.relname
  loop
    execute format('lock table %s in access exclusive mode', v_table);
    -- What comes after the last of them, too: views that are made anew.
    perform set_config('lock_timeout',
      greatest(1, least(v_most, extract(epoch from v_until - clock_timestamp()) * 1000))::integer || 'ms', true);
  end loop;
end
$do$
