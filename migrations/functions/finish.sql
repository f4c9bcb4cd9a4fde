-- Recording how attempts ended.

-- The wait before the next attempt: doubles with each attempt up to the cap, of which a random half to the whole is
-- taken, so that jobs that failed together do not come back together. In seconds, because an interval overflows.
create or replace function queue_pg.backoff(attempt integer, retry_base interval, retry_cap interval) returns interval
language sql volatile as $$
  select make_interval(secs => (0.5::float8 + random() / 2::float8) * least(
    extract(epoch from retry_cap)::float8,
    extract(epoch from retry_base)::float8 * power(2::float8, (least(greatest(attempt, 1), 60) - 1)::float8)))
$$;

comment on function queue_pg.backoff is 'Exponential wait with jitter before the next attempt.';

-- One answer for each id that finish() was given, in its order. A second mention of a job in one batch never counts.
create or replace function queue_pg.finish_answers(ids uuid[], accepted uuid[], states queue_pg.job_state[])
returns table (id uuid, accepted boolean, state text)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  with ended as materialized (
    select coalesce(jsonb_object(finish_answers.accepted::text[], finish_answers.states::text[]), '{}') as states
  ),
  mentioned as (
    select n.id, n.nr, row_number() over (partition by n.id order by n.nr) = 1 as first
    from unnest(ids) with ordinality as n (id, nr)
  )
  select m.id, m.first and e.states ? m.id::text,
    case when m.first and e.states ? m.id::text then e.states ->> m.id::text else queue_pg.state_of(m.id) end
  from mentioned m cross join ended e order by m.nr
$$;

-- Ends attempts in a batch. Each entry counts only while its (id, lease_token) is the current lease; a stale one
-- changes nothing and comes back with accepted = false and the state the job has now (null: unknown id).
--   complete  the result is stored
--   fail      retried after `delay`, else the kind's backoff, while attempts are left and the deadline allows
--   discard   failed, never retried
--   snooze    runs again after `delay`; burns no attempt
--   wait      runs again when what it waits for is over, now if it is (see steps.sql); burns no attempt
--   plan      waits for the subtasks of the plan that its result is, and ends by their ends (see tasks.sql)
--   release   back to the queue now; burns no attempt
--   cancel    ends as cancelled
-- Rows are locked in the order of their ids, so that overlapping batches cannot deadlock. "Running" is tested as
-- lease_expires_at is not null: with state = 'running' a planner without statistics reads all running jobs through
-- jobs_lease instead of these by id.
create or replace function queue_pg.finish(
  ids uuid[],
  lease_tokens bigint[],
  outcomes text[],
  results jsonb[] default null,
  errors jsonb[] default null,
  delays interval[] default null)
returns table (id uuid, accepted boolean, state text)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_settings queue_pg.settings;
  v_unknown text;
  v_ids uuid[];
  v_states queue_pg.job_state[];
  v_results jsonb[];
  v_errors jsonb[];
  v_run_at timestamptz[];
  v_outcomes text[];
  v_tokens bigint[];
  v_ended boolean[];
  v_counted boolean;
begin
  select o into v_unknown from unnest(outcomes) o
  where o is null or o not in ('complete', 'fail', 'discard', 'snooze', 'wait', 'plan', 'release', 'cancel') limit 1;
  if found or cardinality(ids) is distinct from cardinality(outcomes)
    or cardinality(ids) is distinct from cardinality(lease_tokens) then
    perform queue_pg.raise_invalid('outcomes',
      'one of complete, fail, discard, snooze, wait, plan, release, cancel for each id and lease_token');
  end if;

  if 'complete' = all (outcomes) then
    -- Nothing to decide: one statement tests the leases and moves the jobs.
    v_ids := queue_pg.retire(ids, null, results, null, lease_tokens);
    if cardinality(v_ids) = cardinality(ids) then
      return query select i, true, 'completed' from unnest(ids) i;
      return;
    end if;
    v_states := array_fill('completed'::queue_pg.job_state, array[cardinality(v_ids)]);
    return query select a.id, a.accepted, a.state from queue_pg.finish_answers(ids, v_ids, v_states) a;
    return;
  end if;

  select s.* into v_settings from queue_pg.settings s;
  with input as (
    -- Should a batch name a job twice, its first entry counts.
    select distinct on (i.id) i.id, i.lease_token, i.outcome, i.result, i.error,
      case when i.delay is not null
        then make_interval(secs => least(greatest(extract(epoch from i.delay)::float8, 0), 315360000)) end as delay
    from unnest(ids, lease_tokens, outcomes, results, errors, delays) with ordinality
      as i (id, lease_token, outcome, result, error, delay, nr)
    where i.id is not null
    order by i.id, i.nr
  ),
  held as materialized (
    select j.id, j.attempt, j.expires_at, j.counted, i.lease_token, i.outcome, i.result, i.delay,
      coalesce(i.error, '{"code": "error", "message": "no reason given"}') as error,
      coalesce(
        j.max_attempts, (select k.max_attempts from queue_pg.kinds k where k.kind = j.kind), v_settings.max_attempts
      ) as max_attempts,
      coalesce((select k.retry_base from queue_pg.kinds k where k.kind = j.kind), v_settings.retry_base) as retry_base,
      coalesce((select k.retry_cap from queue_pg.kinds k where k.kind = j.kind), v_settings.retry_cap) as retry_cap
    from input i
    join queue_pg.jobs j on j.id between i.id and i.id
    where j.lease_expires_at is not null and j.lease_token = i.lease_token
    order by i.id
    for update of j
  ),
  timed as (
    select h.*, case h.outcome
        when 'fail' then v_now + coalesce(h.delay, queue_pg.backoff(h.attempt, h.retry_base, h.retry_cap))
        when 'snooze' then v_now + coalesce(h.delay, '0')
        else v_now end as next_run_at
    from held h
  ),
  decided as (
    select t.*, case
        when t.outcome = 'complete' then 'completed'
        when t.outcome = 'cancel' then 'cancelled'
        when t.outcome = 'discard' then 'failed'
        when t.outcome = 'plan' then 'waiting'
        when t.outcome = 'fail' and (t.attempt >= t.max_attempts or t.next_run_at >= t.expires_at) then 'failed'
        when t.next_run_at > v_now then 'scheduled'
        else 'queued' end::queue_pg.job_state as next_state
    from timed t
  )
  select array_agg(d.id), array_agg(d.next_state), array_agg(case when d.outcome in ('complete', 'plan') then d.result end),
    array_agg(case when d.outcome in ('fail', 'discard', 'cancel') then d.error end), array_agg(d.next_run_at),
    array_agg(d.outcome), array_agg(d.lease_token), array_agg(d.next_state in ('completed', 'failed', 'cancelled')),
    bool_or(d.counted is not null)
  into v_ids, v_states, v_results, v_errors, v_run_at, v_outcomes, v_tokens, v_ended, v_counted
  from decided d;

  if v_ids is not null then
    if v_counted then
      -- At once for all, whatever becomes of them: limits are locked in one order.
      perform queue_pg.uncount_attempts(v_ids);
    end if;
    if 'wait' = any (v_outcomes) then
      -- In a statement after the one that waited for the rows' locks, so that it sees a signal that came meanwhile.
      select array_agg(w.run_at order by w.nr),
        array_agg(case when w.outcome = 'wait' and w.run_at > v_now then 'scheduled' else w.state end order by w.nr)
      into v_run_at, v_states
      from (
        select u.nr, u.state, u.outcome,
          case u.outcome when 'wait' then queue_pg.waits_until(u.id, u.token, v_now) else u.run_at end as run_at
        from unnest(v_ids, v_states, v_run_at, v_outcomes, v_tokens) with ordinality
          as u (id, state, run_at, outcome, token, nr)
      ) w;
    end if;
    if 'plan' = any (v_outcomes) then
      -- They belong to a job that is there, so a queue that is draining takes them.
      perform set_config('queue_pg.continuing', 'on', true);
      perform queue_pg.add_subtasks(u.id, u.plan)
      from unnest(v_ids, v_outcomes, v_results) as u (id, outcome, plan) where u.outcome = 'plan';
      perform set_config('queue_pg.continuing', '', true);
    end if;
    if exists (select from unnest(v_outcomes) o where o <> 'complete') then
      perform queue_pg.record_events(e.ids, e.types, e.data) from (
        select array_agg(d.id) as ids, array_agg(d.type) as types, array_agg(d.data) as data
        from (
          select u.id,
            case u.outcome when 'fail' then 'failed' when 'discard' then 'failed' when 'snooze' then 'snoozed'
              when 'wait' then 'suspended' when 'plan' then 'planned'
              when 'release' then 'released' else 'cancelled' end as type,
            case when u.outcome in ('snooze', 'wait', 'fail') and not u.ended
              then jsonb_build_object('error', u.error, 'run_at', u.run_at)
              when u.outcome = 'plan' then jsonb_build_object('subtasks', jsonb_array_length(u.result -> 'subtasks'))
              else jsonb_build_object('error', u.error) end as data
          from unnest(v_ids, v_outcomes, v_errors, v_run_at, v_ended, v_results)
            as u (id, outcome, error, run_at, ended, result)
          where u.outcome <> 'complete'
        ) d
      ) e;
    end if;
    if false = any (v_ended) then
      with back as (
        update queue_pg.jobs j
        set state = u.state, run_at = case when u.outcome in ('release', 'plan') then j.run_at else u.run_at end,
          attempt = greatest(j.attempt - case when u.outcome in ('snooze', 'wait', 'release') then 1 else 0 end, 0),
          error = coalesce(u.error, j.error), lease_expires_at = null
        from unnest(v_ids, v_states, v_run_at, v_outcomes, v_errors, v_ended)
          as u (id, state, run_at, outcome, error, ended)
        where j.id between u.id and u.id and not u.ended
        returning j.org::text as org, j.queue::text as queue, u.outcome
      )
      insert into queue_pg.queue_counters (org, queue, retried)
      select b.org, b.queue, count(*) from back b where b.outcome = 'fail' group by b.org, b.queue;
      -- One hint for each queue that got a job back, and one for the first that falls due.
      perform queue_pg.wake(q.queue) from (
        select distinct j.queue::text
        from unnest(v_ids, v_states) as u (id, state) join queue_pg.jobs j on j.id between u.id and u.id where u.state = 'queued') q;
      perform queue_pg.wake_due(min(u.run_at)) from unnest(v_states, v_run_at) as u (state, run_at)
      where u.state = 'scheduled' having count(*) > 0;
    end if;
    if true = any (v_ended) then
      perform queue_pg.retire(
        array_agg(u.id), array_agg(u.state), array_agg(u.result), array_agg(u.error))
      from unnest(v_ids, v_states, v_results, v_errors, v_ended) as u (id, state, result, error, ended)
      where u.ended;
    end if;
  end if;

  return query select a.id, a.accepted, a.state from queue_pg.finish_answers(ids, v_ids, v_states) a;
end
$$;

comment on function queue_pg.finish is
  'Ends attempts in a batch, each fenced by (id, lease_token): complete, fail, discard, snooze, wait, plan, release or cancel.';

-- One entry of finish(), for psql and for clients that finish jobs one by one. Returns the new state; a stale lease
-- raises QP003.
create or replace function queue_pg.finish_one(
  id uuid, lease_token bigint, outcome text, result jsonb, error jsonb, delay interval) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_accepted boolean;
  v_state text;
begin
  select f.accepted, f.state into v_accepted, v_state
  from queue_pg.finish(array[id], array[lease_token], array[outcome], array[result], array[error], array[delay]) f;
  if not v_accepted then
    if v_state is null then
      perform queue_pg.raise_not_found(id);
    end if;
    perform queue_pg.raise_lease_lost(id, v_state);
  end if;
  return v_state;
end
$$;

create or replace function queue_pg.complete(id uuid, lease_token bigint, result jsonb default null) returns text
language sql as $$ select queue_pg.finish_one(id, lease_token, 'complete', result, null, null) $$;

create or replace function queue_pg.fail(
  id uuid, lease_token bigint, error jsonb, retry boolean default true, delay interval default null) returns text
language sql as $$
  select queue_pg.finish_one(id, lease_token, case when retry then 'fail' else 'discard' end, null, error, delay)
$$;

create or replace function queue_pg.snooze(id uuid, lease_token bigint, delay interval) returns text
language sql as $$ select queue_pg.finish_one(id, lease_token, 'snooze', null, null, delay) $$;

create or replace function queue_pg.wait(id uuid, lease_token bigint) returns text
language sql as $$ select queue_pg.finish_one(id, lease_token, 'wait', null, null, null) $$;

create or replace function queue_pg.release(id uuid, lease_token bigint) returns text
language sql as $$ select queue_pg.finish_one(id, lease_token, 'release', null, null, null) $$;

create or replace function queue_pg.cancel_claimed(id uuid, lease_token bigint, reason text default null) returns text
language sql as $$
  select queue_pg.finish_one(id, lease_token, 'cancel', null,
    jsonb_build_object('code', 'cancelled', 'message', coalesce(reason, 'cancelled by its handler')), null)
$$;

comment on function queue_pg.cancel_claimed is
  'Ends a claimed job as cancelled, for its worker; queue_pg.cancel() is for everybody else.';
comment on function queue_pg.complete is 'Ends a claimed job as completed, with its result.';
comment on function queue_pg.fail is 'Ends an attempt as failed; retried while attempts are left, unless retry is false.';
comment on function queue_pg.snooze is 'Gives a claimed job back to run again after the delay; burns no attempt.';
comment on function queue_pg.wait is
  'Gives a claimed job back until what it waits for is over: queue_pg.sleep(), queue_pg.wait_for_event(); burns no attempt.';
comment on function queue_pg.release is 'Gives a claimed job back to the queue now; burns no attempt.';
