-- The only way out of `jobs`.

-- Moves jobs whose rows the caller has locked to finished_jobs, with their end state, result and error; counts them,
-- dates their unique keys and notifies those who watch. Internal: callers decide, this moves.
create or replace function queue_pg.retire(
  ids uuid[], states queue_pg.job_state[], results jsonb[], errors jsonb[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_shard smallint := pg_backend_pid() % 16;
  v_watched uuid;
  v_settings queue_pg.settings;
begin
  select s.* into v_settings from queue_pg.settings s;
  for v_watched in
    with ending as materialized (
      select e.id, e.state, e.result, e.error
      from unnest(ids, states, results, errors) as e (id, state, result, error)
    ),
    removed as (
      delete from queue_pg.jobs j using ending e where j.id = e.id
      returning j.*, e.state as end_state, e.result as end_result, e.error as end_error
    ),
    moved as (
      insert into queue_pg.finished_jobs (
        id, run_at, created_at, started_at, finished_at, retain_until, lease_token, attempt, max_attempts,
        lease_losses, last_event_seq, cost, state, priority, org, queue, kind, worker_id, payload, result, error,
        timeout, expires_at, unique_key, limit_key, parent_id, batch_id, tags, metadata, traceparent)
      select
        r.id, r.run_at, r.created_at, r.claimed_at, v_now,
        v_now + coalesce(
          (select q.retention from queue_pg.queues q where q.org = r.org and q.queue = r.queue), v_settings.retention),
        r.lease_token, r.attempt,
        coalesce(
          r.max_attempts, (select k.max_attempts from queue_pg.kinds k where k.kind = r.kind),
          v_settings.max_attempts),
        r.lease_losses, r.last_event_seq, r.cost, r.end_state, r.priority, r.org, r.queue, r.kind, r.worker_id,
        r.payload, r.end_result, r.end_error,
        coalesce(r.timeout, (select k.timeout from queue_pg.kinds k where k.kind = r.kind), v_settings.timeout),
        r.expires_at, r.unique_key, r.limit_key, r.parent_id, r.batch_id, r.tags, r.metadata, r.traceparent
      from removed r
      returning id, org, queue, state, unique_key, retain_until
    ),
    -- In the order of the key, so that two batches that touch the same counters cannot deadlock.
    counted as (
      insert into queue_pg.queue_counters as c (org, queue, shard, completed, failed, cancelled)
      select m.org, m.queue, v_shard, count(*) filter (where m.state = 'completed'),
        count(*) filter (where m.state = 'failed'), count(*) filter (where m.state = 'cancelled')
      from moved m group by m.org, m.queue order by m.org, m.queue
      on conflict (org, queue, shard) do update set
        completed = c.completed + excluded.completed,
        failed = c.failed + excluded.failed,
        cancelled = c.cancelled + excluded.cancelled
    ),
    dated as (
      update queue_pg.unique_keys u set expires_at = m.retain_until
      from moved m
      where m.unique_key is not null and u.org = m.org and u.unique_key = m.unique_key and u.job_id = m.id
    )
    select r.id from removed r where r.watched
  loop
    if v_settings.notify then
      perform pg_notify('queue_pg_result', v_watched::text);
    end if;
  end loop;
end
$$;
