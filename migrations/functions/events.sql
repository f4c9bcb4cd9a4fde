-- The log of what happened to a job besides the straight way.

-- Appends one event for each entry; the caller holds the row locks, which makes the numbers gapless. A job that comes
-- several times gets its events in the order of the arrays.
create or replace function queue_pg.record_events(ids uuid[], types text[], data jsonb[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  with entry as materialized (
    select e.id, e.type, e.data, row_number() over (partition by e.id order by e.nr) as step,
      count(*) over (partition by e.id) as steps
    from unnest(ids, types, data) with ordinality as e (id, type, data, nr)
  ),
  numbered as (
    update queue_pg.jobs j set last_event_seq = least(j.last_event_seq, 1000000000 - e.steps) + e.steps
    from entry e where j.id between e.id and e.id and e.step = 1
    returning j.id, j.last_event_seq - e.steps as before, j.attempt, j.worker_id
  )
  insert into queue_pg.job_events (job_id, seq, type, data)
  select e.id, n.before + e.step, e.type,
    jsonb_build_object('attempt', n.attempt, 'worker_id', n.worker_id) || jsonb_strip_nulls(coalesce(e.data, '{}'))
  from entry e join numbered n on n.id = e.id;
end
$$;
