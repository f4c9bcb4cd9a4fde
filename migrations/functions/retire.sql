-- The only way out of `jobs`.

-- Moves jobs to finished_jobs with their end state (null: completed), result and error; counts them, dates their unique
-- keys, notifies those who watch, settles what others share with them and tells the children of those that are awaited, unless
-- `tells` is false. Returns the ids of those it moved. Internal: callers decide, this moves.
-- Either the caller has locked the rows, or it gives the lease tokens that must still stand. Rows are locked in the
-- order of their ids, so that overlapping batches cannot deadlock. "Running" is tested as lease_expires_at is not null:
-- with state = 'running' a planner without statistics reads all running jobs through jobs_lease instead of these by id.
create or replace function queue_pg.retire(
  ids uuid[], states queue_pg.job_state[], results jsonb[], errors jsonb[], lease_tokens bigint[] default null,
  tells boolean default true)
returns uuid[]
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
  v_retired uuid[];
  v_watched uuid[];
  v_batches uuid[];
  v_batch_states queue_pg.job_state[];
  v_awaited uuid[];
  v_ends queue_pg.job_state[];
  v_children uuid[];
  v_followed uuid[];
  v_cached bytea[];
  v_observed boolean := queue_pg.is_observed();
  -- Of attempts that a limit counts.
  v_counted smallint[];
  v_orgs text[];
  v_queues text[];
  v_limit_keys text[];
  v_settings queue_pg.settings;
  -- Mostly none has: a look-up for each job saved.
  v_own_retention boolean;
  v_id uuid;
begin
  select s.* into v_settings from queue_pg.settings s;
  v_own_retention := exists (select from queue_pg.queues q where q.retention is not null);
  with ending as materialized (
    select distinct on (e.id) e.id, e.state, e.result, e.error, e.lease_token
    from unnest(ids, states, results, errors, lease_tokens) with ordinality
      as e (id, state, result, error, lease_token, nr)
    -- Should a batch name a job twice, its first entry counts.
    order by e.id, e.nr
  ),
  removed as (
    delete from queue_pg.jobs j using ending e
    -- By the array: a token that is null among others is no right to anything.
    where j.id between e.id and e.id
      and (retire.lease_tokens is null or (j.lease_expires_at is not null and j.lease_token = e.lease_token))
    returning j.*, coalesce(e.state, 'completed') as end_state, e.result as end_result, e.error as end_error
  ),
  moved as (
    insert into queue_pg.finished_jobs (
      id, run_at, created_at, started_at, finished_at, retain_until, lease_token, attempt, max_attempts,
      lease_losses, last_event_seq, cost, state, priority, org, queue, kind, worker_id, payload, result, error,
      promoted_at, logged_token, timeout, expires_at, unique_key, limit_key, parent_id, batch_id, tags, metadata, traceparent,
      parents_left, rerun_of, cache_key, cached_from)
    select
      r.id, r.run_at, r.created_at, r.claimed_at, v_now,
      v_now + case when v_own_retention then coalesce(
        (select q.retention from queue_pg.queues q where q.org = r.org and q.queue = r.queue), v_settings.retention)
        else v_settings.retention end,
      r.lease_token, r.attempt,
      -- Null only in a job that was never claimed.
      coalesce(
        r.max_attempts, (select k.max_attempts from queue_pg.kinds k where k.kind = r.kind), v_settings.max_attempts),
      r.lease_losses, r.last_event_seq, r.cost, r.end_state, r.priority, r.org, r.queue, r.kind, r.worker_id,
      r.payload, r.end_result, r.end_error, r.promoted_at, r.logged_token,
      coalesce(r.timeout, (select k.timeout from queue_pg.kinds k where k.kind = r.kind), v_settings.timeout),
      r.expires_at, r.unique_key, r.limit_key, r.parent_id, r.batch_id, r.tags, r.metadata, r.traceparent,
      r.parents_left, r.rerun_of, r.cache_key, r.cached_from
    from removed r
    returning id, org, queue, kind, state, unique_key, retain_until
  ),
  counted as (
    insert into queue_pg.queue_counters (org, queue, completed, failed, cancelled, failed_webhooks)
    select m.org, m.queue, count(*) filter (where m.state = 'completed'),
      count(*) filter (where m.state = 'failed'), count(*) filter (where m.state = 'cancelled'),
      nullif(count(*) filter (where m.state = 'failed' and m.kind = 'webhook'), 0)
    from moved m group by m.org, m.queue
  ),
  dated as (
    update queue_pg.unique_keys u set expires_at = m.retain_until
    from moved m
    where m.unique_key is not null and u.org = m.org and u.unique_key = m.unique_key and u.job_id = m.id
  )
  select array_agg(r.id), array_agg(r.id) filter (where r.watched), array_agg(r.id) filter (where r.followed),
    array_agg(r.batch_id) filter (where r.batch_id is not null),
    array_agg(r.end_state) filter (where r.batch_id is not null), array_agg(r.id) filter (where r.awaited),
    array_agg(r.end_state) filter (where r.awaited), array_agg(r.id) filter (where r.parents_left is not null),
    -- One that waits does no work that others wait for, unless it waits for its subtasks.
    array_agg(r.cache_key) filter (where r.cache_key is not null and (r.state <> 'waiting' or r.parents_left is not null)),
    array_agg(r.counted) filter (where r.counted is not null),
    array_agg(r.org::text) filter (where r.counted is not null),
    array_agg(r.queue::text) filter (where r.counted is not null),
    array_agg(r.limit_key::text) filter (where r.counted is not null),
    -- Other ends are told by record_events().
    count(queue_pg.tell_transition(
      r.id, r.org::text, r.queue::text, r.kind::text, 'completed',
      greatest(r.last_event_seq, 1) + (r.promoted_at is not null)::integer
        + (r.lease_token > 0 and r.logged_token is distinct from r.lease_token)::integer + 1,
      r.attempt::integer, r.worker_id)) filter (where v_observed and r.end_state = 'completed')
  into v_retired, v_watched, v_followed, v_batches, v_batch_states, v_awaited, v_ends, v_children, v_cached, v_counted, v_orgs,
    v_queues, v_limit_keys
  from removed r;
  if v_batches is not null then
    perform queue_pg.count_batches(v_batches, v_batch_states);
  end if;
  if v_followed is not null then
    perform queue_pg.tell_followers(v_followed);
  end if;
  if v_watched is not null and v_settings.notify then
    foreach v_id in array v_watched loop
      perform queue_pg.send_hint('queue_pg_result', v_id::text);
    end loop;
  end if;
  if v_children is not null then
    -- Perhaps later than the last of them is forgotten, never sooner.
    insert into queue_pg.ended_children (child_id, expires_at)
    select c, v_now + greatest(v_settings.retention, (select max(q.retention) from queue_pg.queues q))
    from unnest(v_children) c;
  end if;
  if v_awaited is not null and tells then
    perform queue_pg.release_children(v_awaited, v_ends);
  end if;
  if v_cached is not null then
    perform queue_pg.settle_cache(v_cached, 100);
  end if;
  if v_counted is not null then
    -- Last: limits are locked after jobs.
    perform queue_pg.free_slots(v_orgs, v_queues, v_limit_keys, v_counted);
  end if;
  return coalesce(v_retired, '{}');
end
$$;
