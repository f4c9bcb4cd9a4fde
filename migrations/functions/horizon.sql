-- Who keeps dead rows from being removed.

-- Every row that a job has left behind stays until no transaction can be old enough to see it. Returns who holds that
-- horizon for the queue's tables: the oldest holder older than `min_age`, or no row. `kind` is
--   session   a client's transaction: `name` is its application
--   prepared  a prepared transaction: `name` is its gid
--   slot      a replication slot, with the pid of its walsender while it has one
--   standby   a standby with hot_standby_feedback, which has a long query or transaction of its own
-- A role sees state, age in seconds and query of its own sessions only, unless it has pg_read_all_stats (`visible` says
-- so); who is not visible, and slots and standbys, which have no age in seconds, count from a thousand transactions on.
-- Not looked at: catalog_xmin of slots, which holds the catalogs and no row of these tables. Not a holder: VACUUM, and
-- a session of another database that only reads.
-- dead_rows is what the statistics know of, jobs_bytes the size of `jobs` with its indexes. The server's own clock,
-- because that is what xact_start is by.
create or replace function queue_pg.horizon(min_age interval default '5 seconds')
returns table (
  kind text, pid integer, name text, username text, database text, state text, visible boolean,
  age_seconds double precision, age_transactions integer, query text, dead_rows bigint, jobs_bytes bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with holders as (
    select case when a.datid is null then 'standby' else 'session' end as kind, a.pid, a.application_name as name,
      a.usename as username, a.datname as database, a.state,
      a.query is distinct from '<insufficient privilege>' as visible,
      extract(epoch from clock_timestamp() - a.xact_start)::double precision as age_seconds,
      greatest(age(a.backend_xid), case when a.datid is null or d.datname is not null then age(a.backend_xmin) end) as age,
      -- A transaction that writes holds the horizon of whoever looks meanwhile: of equals it is the cause.
      age(a.backend_xid) as own_age, a.query
    from pg_stat_activity a
    left join pg_database d on d.oid = a.datid and d.datname = current_database()
    where a.pid <> pg_backend_pid() and a.pid not in (select v.pid from pg_stat_progress_vacuum v)
    union all
    select 'prepared', null, p.gid, p.owner, p.database, null, true,
      extract(epoch from clock_timestamp() - p.prepared), age(p.transaction), age(p.transaction), null
    from pg_prepared_xacts p
    union all
    select 'slot', s.active_pid, s.slot_name, null, s.database, case when s.active then 'active' else 'inactive' end,
      true, null, age(s.xmin), null, null
    from pg_replication_slots s
  ),
  oldest as (
    select h.* from holders h
    where h.age is not null and coalesce(h.age_seconds >= extract(epoch from min_age), h.age >= 1000)
    order by h.age desc, coalesce(h.own_age = h.age, false) desc, h.age_seconds desc nulls last
    limit 1
  )
  select o.kind, o.pid, o.name::text, o.username::text, o.database::text, o.state, o.visible, o.age_seconds, o.age,
    case when o.visible then left(regexp_replace(o.query, '\s+', ' ', 'g'), 500) end,
    pg_stat_get_dead_tuples('queue_pg.jobs'::regclass) + pg_stat_get_dead_tuples('queue_pg.queue_counters'::regclass)
      + pg_stat_get_dead_tuples('queue_pg.unique_keys'::regclass) + pg_stat_get_dead_tuples('queue_pg.workers'::regclass),
    pg_total_relation_size('queue_pg.jobs'::regclass)
  from oldest o;
end
$$;

comment on function queue_pg.horizon is
  'Who keeps dead rows of the queue from being removed: the oldest transaction, slot or standby; no row when nobody does.';
