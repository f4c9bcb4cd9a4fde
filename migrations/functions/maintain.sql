-- What has to happen by itself: expired leases, due jobs, schedules, deadlines. Short statements that any process may run; every
-- one is guarded by the rows' own state, so two at once are only a waste.
--
-- With `since`, the time of an earlier look, each looks only at what fell due after it, and a second before for what was
-- committed late. While a long transaction keeps dead rows from being removed, all that was ever due would else be
-- walked through again every time. What is left for a look without `since`: rows that somebody had locked, or that were
-- committed more than a second after they fell due.

-- Takes jobs from workers that let their lease expire. A lost lease burns no attempt: the job did nothing wrong unless
-- it keeps taking its workers down, so after settings.max_lease_losses it fails with code lease_lost. A job that is
-- past its timeout did have its attempt: that counts as a failed one with code timeout.
create or replace function queue_pg.reap(max_jobs integer default 1000, since timestamptz default null)
returns table (id uuid, state text)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_floor timestamptz := coalesce(since - interval '1 second', '-infinity');
  v_settings queue_pg.settings;
  v_ids uuid[];
  v_states queue_pg.job_state[];
  v_errors jsonb[];
  v_run_at timestamptz[];
  v_timed_out boolean[];
  v_ended boolean[];
  v_queues text[];
  v_counted boolean;
begin
  select s.* into v_settings from queue_pg.settings s;
  with lost as materialized (
    select j.id, j.attempt, j.claimed_at, j.lease_losses, j.worker_id, j.expires_at, j.kind, j.max_attempts, j.timeout,
      j.run_at, j.queue, j.counted
    from queue_pg.jobs j
    where j.state = 'running' and j.lease_expires_at < v_now and j.lease_expires_at > v_floor
    order by j.lease_expires_at
    limit max_jobs
    for update skip locked
  ),
  known as (
    select l.*, v_settings.max_lease_losses,
      l.claimed_at + coalesce(l.timeout, k.timeout, v_settings.timeout) <= v_now as timed_out,
      coalesce(l.max_attempts, k.max_attempts, v_settings.max_attempts) as most_attempts,
      v_now + queue_pg.backoff(
        l.attempt, coalesce(k.retry_base, v_settings.retry_base), coalesce(k.retry_cap, v_settings.retry_cap)
      ) as retry_at
    from lost l left join queue_pg.kinds k on k.kind = l.kind
  ),
  decided as (
    select n.*, case
        when n.timed_out and (n.attempt >= n.most_attempts or n.retry_at >= n.expires_at) then 'failed'
        when n.timed_out then 'scheduled'
        when n.lease_losses + 1 >= n.max_lease_losses then 'failed'
        else 'queued' end::queue_pg.job_state as next_state
    from known n
  )
  select array_agg(d.id), array_agg(d.next_state),
    array_agg(case when d.timed_out
      then jsonb_build_object('code', 'timeout', 'message', 'the attempt outlived its timeout and its lease',
        'worker_id', d.worker_id)
      else jsonb_build_object('code', 'lease_lost', 'message',
        format('worker %s let the lease expire (%s of %s)', d.worker_id, d.lease_losses + 1, d.max_lease_losses),
        'worker_id', d.worker_id) end),
    array_agg(case when d.next_state = 'scheduled' then d.retry_at else d.run_at end), array_agg(d.timed_out),
    array_agg(d.next_state = 'failed'), array_agg(distinct d.queue::text) filter (where d.next_state = 'queued'),
    bool_or(d.counted is not null)
  into v_ids, v_states, v_errors, v_run_at, v_timed_out, v_ended, v_queues, v_counted
  from decided d;

  if v_ids is null then
    return;
  end if;
  if v_counted then
    perform queue_pg.uncount_attempts(v_ids);
  end if;
  perform queue_pg.record_events(
    v_ids, array_agg(case when u.timed_out then 'failed' else 'lease_lost' end order by u.nr),
    array_agg(jsonb_build_object('error', u.error) order by u.nr))
  from unnest(v_timed_out, v_errors) with ordinality as u (timed_out, error, nr);
  with back as (
    update queue_pg.jobs j
    set state = case when u.ended then j.state else u.state end,
      lease_expires_at = case when u.ended then j.lease_expires_at end,
      run_at = u.run_at,
      error = u.error,
      attempt = greatest(j.attempt - case when u.timed_out then 0 else 1 end, 0),
      lease_losses = least(j.lease_losses, 999999999) + case when u.timed_out then 0 else 1 end
    from unnest(v_ids, v_states, v_errors, v_run_at, v_timed_out, v_ended)
      as u (id, state, error, run_at, timed_out, ended)
    where j.id between u.id and u.id
    returning j.org::text as org, j.queue::text as queue, u.timed_out, u.ended
  )
  insert into queue_pg.queue_counters (org, queue, retried, lease_losses)
  select b.org, b.queue, nullif(count(*) filter (where b.timed_out and not b.ended), 0), count(*)
  from back b group by b.org, b.queue;
  if true = any (v_ended) then
    perform queue_pg.retire(array_agg(u.id), array_agg(u.state), array_agg(null::jsonb), array_agg(u.error))
    from unnest(v_ids, v_states, v_errors, v_ended) as u (id, state, error, ended) where u.ended;
  end if;
  perform queue_pg.wake(q) from unnest(v_queues) q;
  return query select u.id, u.state::text from unnest(v_ids, v_states) as u (id, state);
end
$$;

comment on function queue_pg.reap is 'Takes jobs back from workers whose leases expired; returns them with their new state.';

-- Makes due jobs claimable; returns how many.
create or replace function queue_pg.promote(max_jobs integer default 1000, since timestamptz default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  -- In a variable: a volatile function cannot bound an index scan, and all scheduled jobs would be read.
  v_now timestamptz := queue_pg.now();
  v_floor timestamptz := coalesce(since - interval '1 second', '-infinity');
  v_observed boolean := queue_pg.is_observed();
  v_count integer;
  v_queues text[];
  v_followed uuid[];
begin
  with due as materialized (
    select j.id from queue_pg.jobs j
    where j.state = 'scheduled' and j.run_at <= v_now and j.run_at > v_floor
    order by j.run_at
    limit max_jobs
    for update skip locked
  ),
  promoted as (
    update queue_pg.jobs j set state = 'queued', promoted_at = v_now from due where j.id between due.id and due.id
    returning j.id, j.org, j.queue, j.kind, j.last_event_seq, j.followed
  )
  select count(*), array_agg(distinct p.queue::text), array_agg(p.id) filter (where p.followed),
    count(queue_pg.tell_transition(
      p.id, p.org::text, p.queue::text, p.kind::text, 'promoted', greatest(p.last_event_seq, 1)::integer + 1))
      filter (where v_observed)
  into v_count, v_queues, v_followed
  from promoted p;
  perform queue_pg.tell_followers(v_followed);
  perform queue_pg.wake(q) from unnest(v_queues) q;
  return v_count;
end
$$;

comment on function queue_pg.promote is 'Makes scheduled jobs that are due claimable; returns how many.';

-- Fails jobs that did not start before their deadline; returns how many.
create or replace function queue_pg.expire(max_jobs integer default 1000, since timestamptz default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_floor timestamptz := coalesce(since - interval '1 second', '-infinity');
  v_ids uuid[];
  v_errors jsonb[];
begin
  with dead as materialized (
    select j.id, j.expires_at, j.error from queue_pg.jobs j
    where j.expires_at <= v_now and j.expires_at > v_floor and j.state in ('scheduled', 'waiting', 'queued')
    order by j.expires_at
    limit max_jobs
    for update skip locked
  )
  select array_agg(d.id), array_agg(jsonb_strip_nulls(jsonb_build_object(
    'code', 'expired', 'message', format('no attempt could start before the deadline %s', d.expires_at),
    'last_error', d.error)))
  into v_ids, v_errors from dead d;
  if v_ids is null then
    return 0;
  end if;
  perform queue_pg.record_events(
    v_ids, array_agg('expired'::text), array_agg(jsonb_build_object('error', e.error) order by e.nr))
  from unnest(v_errors) with ordinality as e (error, nr);
  perform queue_pg.retire(
    v_ids, array_agg('failed'::queue_pg.job_state), array_agg(null::jsonb), v_errors)
  from unnest(v_ids);
  return cardinality(v_ids);
end
$$;

comment on function queue_pg.expire is 'Fails jobs whose deadline passed before they started; returns how many.';

-- One short step of all, and the seconds until the next thing falls due (null: nothing does, or not `within`).
-- One holder at a time, to save work; `busy` says that another one is at it. The lock ends with the transaction, so it
-- is safe behind a pooler, and nothing depends on it.
-- `arm` is for callers who look again within a second or two. True, of one who listens to queue_pg_due: a job that is
-- submitted to start before that look notifies it, unless the next look is a moment away anyway. False: nobody listens.
create or replace function queue_pg.maintain(
  max_jobs integer default 1000, arm boolean default null, since timestamptz default null, within interval default null)
returns table (reaped integer, promoted integer, expired integer, busy boolean, next_due_seconds double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- A fire costs several times what a promotion does.
  v_most_fired constant integer := 200;
  v_fired integer;
begin
  reaped := 0;
  promoted := 0;
  expired := 0;
  busy := not pg_try_advisory_xact_lock(7310579610401947745);
  if not busy then
    -- Apart from each other: what stops one of them must not stop the others.
    begin
      select count(*) into reaped from queue_pg.reap(max_jobs, since);
    exception when others then
      raise warning 'queue_pg.reap: %', sqlerrm;
    end;
    begin
      promoted := queue_pg.promote(max_jobs, since);
    exception when others then
      raise warning 'queue_pg.promote: %', sqlerrm;
    end;
    begin
      v_fired := queue_pg.fire_schedules(least(max_jobs, v_most_fired), since);
      -- max_jobs tells the caller that there is more.
      promoted := case when v_fired >= v_most_fired then max_jobs else least(promoted + v_fired, max_jobs) end;
    exception when others then
      raise warning 'queue_pg.fire_schedules: %', sqlerrm;
    end;
    begin
      perform queue_pg.settle(max_jobs);
    exception when others then
      raise warning 'queue_pg.settle: %', sqlerrm;
    end;
    begin
      perform queue_pg.settle_deferred_cache(max_jobs);
    exception when others then
      raise warning 'queue_pg.settle_deferred_cache: %', sqlerrm;
    end;
    begin
      expired := queue_pg.expire(max_jobs, since);
    exception when others then
      raise warning 'queue_pg.expire: %', sqlerrm;
    end;
    begin
      perform queue_pg.settle_batches();
    exception when others then
      raise warning 'queue_pg.settle_batches: %', sqlerrm;
    end;
    perform queue_pg.open_limits(since);
  end if;
  next_due_seconds := queue_pg.next_due_seconds(since, within);
  if arm and coalesce(next_due_seconds > 0.05, true) then
    perform queue_pg.arm_due();
    -- Once more: what was committed before the arming has notified nobody.
    next_due_seconds := queue_pg.next_due_seconds(since, within);
  elsif arm is not null then
    perform queue_pg.disarm_due();
  end if;
  return next;
end
$$;

comment on function queue_pg.maintain is
  'One step of reaping, promotion, schedules, expiry and the ends of batches; tells when the next thing falls due. promoted counts jobs of schedules too.';

-- Bounded by `within` because the first live entry of an index may lie behind very many dead ones. That of leases has
-- the most, one for every job, and no expiry has to be met to the millisecond: with `since` it is not read.
create or replace function queue_pg.next_due_seconds(since timestamptz, within interval) returns double precision
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_floor timestamptz := coalesce(since - interval '1 second', '-infinity');
  v_limit timestamptz := coalesce(v_now + within, 'infinity');
begin
  -- greatest() ignores null: nothing due must not read as due now.
  return (
    select greatest(extract(epoch from due.at - v_now), 0)
    from (
      select least(
        (select j.run_at from queue_pg.jobs j
          where j.state = 'scheduled' and j.run_at > v_floor and j.run_at <= v_limit order by j.run_at limit 1),
        (select s.next_fire_at from queue_pg.schedules s
          where s.next_fire_at > v_floor and s.next_fire_at <= v_limit order by s.next_fire_at limit 1),
        case when since is null then (select j.lease_expires_at from queue_pg.jobs j
          where j.state = 'running' and j.lease_expires_at <= v_limit order by j.lease_expires_at limit 1) end,
        (select j.expires_at from queue_pg.jobs j
          where j.expires_at > v_floor and j.expires_at <= v_limit and j.state in ('scheduled', 'waiting', 'queued')
          order by j.expires_at limit 1),
        -- Somebody keeps them locked: not at once again.
        case when exists (select from queue_pg.unsettled) or exists (select from queue_pg.unsettled_cache) then v_now + interval '100 milliseconds' end,
        (select l.opens_at from queue_pg.limits l
          where l.opens_at > v_now and l.opens_at <= v_limit and l.opens_at < 'infinity'
          order by l.opens_at limit 1)) as at
    ) due
    where due.at is not null);
end
$$;
