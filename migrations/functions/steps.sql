-- Steps: what a handler need not do again when its job is run once more.
--
-- A handler saves the result of a step under its lease, and finds it at the next run. A sleep or a wait for an event is a
-- step too: the handler that reaches one which is not over is left, and its attempt ends with the outcome `wait` (see
-- finish.sql), which frees the worker's slot. Whether the job is to run now or later is decided there, under the lock of its
-- row, which signal() takes as well: a signal comes either before the decision, or to a job that waits.
--
-- Bounds, so that no job can fill the disk, or the memory of the worker that reads its steps.

create or replace function queue_pg.most_steps() returns integer language sql immutable parallel safe return 1000;
create or replace function queue_pg.most_step_bytes() returns integer language sql immutable parallel safe return 1048576;
create or replace function queue_pg.most_step_bytes_of_job() returns integer
language sql immutable parallel safe return 33554432;

comment on function queue_pg.most_steps() is 'How many steps a job may have, and how many signals.';
comment on function queue_pg.most_step_bytes() is 'Largest result of a step or payload of a signal, as text.';
comment on function queue_pg.most_step_bytes_of_job() is 'Largest sum of them in one job.';

-- Keeps the lease until the end of the transaction: nobody can finish, reap or cancel the job meanwhile, heartbeats go on.
-- Returns the attempt; a lease that is lost raises QP003.
create or replace function queue_pg.hold_lease(id uuid, lease_token bigint) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_attempt integer;
  v_state text;
begin
  select j.attempt into v_attempt from queue_pg.jobs j
  where j.id = hold_lease.id and j.lease_expires_at is not null and j.lease_token = hold_lease.lease_token
  for key share;
  if not found then
    v_state := queue_pg.state_of(hold_lease.id);
    if v_state is null then
      perform queue_pg.raise_not_found(hold_lease.id);
    end if;
    perform queue_pg.raise_lease_lost(hold_lease.id, v_state);
  end if;
  return v_attempt;
end
$$;

-- Refuses names and values that are too long, and numbers that explode when written out. Returns the value's size as text.
create or replace function queue_pg.check_step(name text, field text, value jsonb) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bytes integer;
begin
  if name is null or length(name) not between 1 and 200 then
    perform queue_pg.raise_invalid('name', 'must have 1 to 200 characters');
  end if;
  if value is null then
    return 0;
  end if;
  if pg_column_size(value) > 2 * queue_pg.most_step_bytes() then
    perform queue_pg.raise_invalid(field, 'must be at most 1 MiB');
  elsif not queue_pg.json_is_printable(value) then
    perform queue_pg.raise_invalid(field, 'holds a number that is too long written out');
  end if;
  v_bytes := octet_length(value::text);
  if v_bytes > queue_pg.most_step_bytes() then
    perform queue_pg.raise_invalid(field, 'must be at most 1 MiB');
  end if;
  return v_bytes;
end
$$;

-- Adds to what a job has, and refuses what would be too much.
create or replace function queue_pg.count_step(id uuid, steps integer, signals integer, bytes integer, field text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_job queue_pg.stepped_jobs;
begin
  insert into queue_pg.stepped_jobs as s (job_id, steps, signals, bytes, look_at)
  values (
    count_step.id, count_step.steps, count_step.signals, count_step.bytes, queue_pg.now() + interval '1 hour')
  on conflict on constraint stepped_jobs_pkey do update set
    steps = s.steps + excluded.steps, signals = s.signals + excluded.signals, bytes = s.bytes + excluded.bytes
  returning s.* into v_job;
  if v_job.steps > queue_pg.most_steps() or v_job.signals > queue_pg.most_steps() then
    perform queue_pg.raise_invalid('name', format(
      'this job has %s %s already', queue_pg.most_steps(), case when count_step.signals > 0 then 'signals' else 'steps' end));
  elsif v_job.bytes > queue_pg.most_step_bytes_of_job() then
    perform queue_pg.raise_invalid(field, 'all of this job together must be at most 32 MiB');
  end if;
end
$$;

-- Keeps the result of a step. The same call again under the same lease changes nothing: an answer can get lost.
create or replace function queue_pg.save_step(id uuid, lease_token bigint, name text, result jsonb default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_attempt integer := queue_pg.hold_lease(save_step.id, save_step.lease_token);
  v_bytes integer := queue_pg.check_step(save_step.name, 'result', save_step.result);
  v_now timestamptz := queue_pg.now();
begin
  insert into queue_pg.job_steps (job_id, name, type, result, attempt, lease_token, begun_at, finished_at)
  values (
    save_step.id, save_step.name, 'step', save_step.result, v_attempt, save_step.lease_token, v_now, v_now)
  on conflict on constraint job_steps_pkey do nothing;
  if found then
    perform queue_pg.count_step(save_step.id, 1, 0, v_bytes, 'result');
  elsif not exists (
    select from queue_pg.job_steps s
    where s.job_id = save_step.id and s.name = save_step.name and s.type = 'step'
      and s.lease_token = save_step.lease_token
  ) then
    perform queue_pg.raise_invalid('name', 'is that of another step of this job');
  end if;
end
$$;

comment on function queue_pg.save_step is
  'Keeps the result of a named step of a claimed job, so that no later attempt need do it again.';

-- The handler has come to a wait. Its end was set when it was first reached; a signal goes before a timeout.
create or replace function queue_pg.reach_wait(
  id uuid, lease_token bigint, name text, type text, until timestamptz, at timestamptz)
returns queue_pg.job_steps
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_attempt integer;
  v_step queue_pg.job_steps;
  v_signal queue_pg.job_signals;
begin
  perform queue_pg.check_step(reach_wait.name, 'name', null);
  -- After the lock: a signal that was being stored is there.
  v_attempt := queue_pg.hold_lease(reach_wait.id, reach_wait.lease_token);
  insert into queue_pg.job_steps as s (job_id, name, type, until, attempt, lease_token, begun_at)
  values (
    reach_wait.id, reach_wait.name, reach_wait.type, reach_wait.until, v_attempt, reach_wait.lease_token,
    reach_wait.at)
  on conflict on constraint job_steps_pkey do nothing
  returning s.* into v_step;
  if found then
    perform queue_pg.count_step(reach_wait.id, 1, 0, 0, 'name');
  else
    update queue_pg.job_steps s set attempt = v_attempt, lease_token = reach_wait.lease_token
    where s.job_id = reach_wait.id and s.name = reach_wait.name and s.type = reach_wait.type
    returning s.* into v_step;
    if not found then
      perform queue_pg.raise_invalid('name', 'is that of another step of this job');
    end if;
  end if;
  if v_step.finished_at is not null then
    return v_step;
  end if;

  if v_step.type = 'event' then
    select g.* into v_signal from queue_pg.job_signals g
    where g.job_id = reach_wait.id and g.name = reach_wait.name;
  end if;
  if v_signal.job_id is not null or v_step.until <= reach_wait.at then
    update queue_pg.job_steps s set
      result = v_signal.payload, finished_at = reach_wait.at, timed_out = v_signal.job_id is null and s.type = 'event'
    where s.job_id = reach_wait.id and s.name = reach_wait.name
    returning s.* into v_step;
  end if;
  return v_step;
end
$$;

-- Begins the sleep of this name, or looks at it: without finished_at it is not over; then end the attempt with the outcome
-- `wait`. It lasts `delay` from when it was first reached, or until a moment.
create or replace function queue_pg.sleep(
  id uuid, lease_token bigint, name text, delay interval default null, until timestamptz default null)
returns queue_pg.job_steps
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_until timestamptz;
begin
  if (sleep.delay is null) = (sleep.until is null) then
    perform queue_pg.raise_invalid('delay', 'give either delay or until');
  elsif sleep.delay is not null then
    v_until := queue_pg.wait_end(sleep.delay, v_now, 'delay');
  elsif sleep.until < v_now + interval '87600 hours' then
    -- It may have passed: then there is nothing to wait for.
    v_until := greatest(sleep.until, v_now);
  else
    perform queue_pg.raise_invalid('until', 'must be within ten years');
  end if;
  return queue_pg.reach_wait(sleep.id, sleep.lease_token, sleep.name, 'sleep', v_until, v_now);
end
$$;

comment on function queue_pg.sleep is
  'Begins a named sleep of a claimed job or looks at it; without finished_at, end the attempt with queue_pg.wait().';

-- Looks whether the event has come, or the time to wait for it is over: without finished_at neither is so; then end the
-- attempt with the outcome `wait`. The result is the payload of the signal, unless it timed_out. The timeout counts from when
-- the wait was first reached; null: none.
create or replace function queue_pg.wait_for_event(
  id uuid, lease_token bigint, name text, timeout interval default null) returns queue_pg.job_steps
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := queue_pg.now();
begin
  return queue_pg.reach_wait(
    wait_for_event.id, wait_for_event.lease_token, wait_for_event.name, 'event',
    queue_pg.wait_end(wait_for_event.timeout, v_now, 'timeout'), v_now);
end
$$;

comment on function queue_pg.wait_for_event is
  'Looks whether an event was signalled to a claimed job; without finished_at, end the attempt with queue_pg.wait().';

-- The end of a wait that begins now; null: it has none. No wait is longer than ten years.
create or replace function queue_pg.wait_end(duration interval, at timestamptz, field text) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seconds float8 := extract(epoch from duration);
begin
  if v_seconds not between 0 and 315360000 then
    perform queue_pg.raise_invalid(field, 'must be from 0 to 10 years');
  end if;
  return wait_end.at + make_interval(secs => v_seconds);
end
$$;

-- When a job is to go on that ends its attempt with `wait`: with the first that is over of the waits that its last claim has
-- reached. One without an end is looked at again after ten years. The caller holds the lock of the job's row.
create or replace function queue_pg.waits_until(id uuid, lease_token bigint, at timestamptz) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  return (
    select coalesce(
      greatest(min(case when g.job_id is not null then waits_until.at
        else coalesce(s.until, waits_until.at + interval '87600 hours') end), waits_until.at), waits_until.at)
    from queue_pg.job_steps s
    left join queue_pg.job_signals g on g.job_id = s.job_id and g.name = s.name and s.type = 'event'
    where s.job_id = waits_until.id and s.lease_token = waits_until.lease_token and s.finished_at is null);
end
$$;

-- What a job waits for that its last claim has reached, for people: no row unless it does.
create or replace function queue_pg.waits_of(id uuid) returns setof queue_pg.job_steps
language sql volatile as $$
  select s.* from queue_pg.jobs j
  join queue_pg.job_steps s on s.job_id = j.id and s.lease_token = j.lease_token and s.finished_at is null
  where j.id = waits_of.id and j.state = 'scheduled'
$$;

-- Tells a job that an event has come, and has it claimed now if it waits for that. For any job that has not ended, also
-- before it waits. The first signal of a name counts: true; any later one changes nothing: false.
create or replace function queue_pg.signal(id uuid, name text, payload jsonb default null) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_bytes integer := queue_pg.check_step(signal.name, 'payload', signal.payload);
  v_job queue_pg.jobs;
  v_state text;
begin
  loop
    -- Before all else: what follows sees all that others did to the job.
    select j.* into v_job from queue_pg.jobs j where j.id = signal.id for update;
    exit when found;
    v_state := queue_pg.state_of(signal.id);
    if v_state is null then
      perform queue_pg.raise_not_found(signal.id);
    elsif v_state in ('completed', 'failed', 'cancelled') then
      perform queue_pg.raise_wrong_state(signal.id, 'signal', v_state);
    end if;
    -- Live again: somebody retried it between the two looks.
  end loop;
  if exists (
    select from queue_pg.job_steps s where s.job_id = signal.id and s.name = signal.name and s.timed_out
  ) then
    perform queue_pg.raise_too_late(signal.id, signal.name, v_job.state::text);
  end if;

  insert into queue_pg.job_signals (job_id, name, payload) values (signal.id, signal.name, signal.payload)
  on conflict on constraint job_signals_pkey do nothing;
  if not found then
    return false;
  end if;
  perform queue_pg.count_step(signal.id, 0, 1, v_bytes, 'payload');
  perform queue_pg.record_events(
    array[v_job.id], array['signalled'], array[jsonb_build_object('name', signal.name)]);
  if v_job.state = 'scheduled' and exists (
    select from queue_pg.job_steps s
    where s.job_id = signal.id and s.name = signal.name and s.type = 'event' and s.finished_at is null
      and s.lease_token = v_job.lease_token
  ) then
    update queue_pg.jobs j set state = 'queued', run_at = queue_pg.now() where j.id = signal.id;
    perform queue_pg.wake(v_job.queue);
  end if;
  return true;
end
$$;

comment on function queue_pg.signal is
  'Tells an unfinished job that an event has come; one that waits for it is run now. False: it was told before.';

-- Has the steps of a job done again at its next run.
create or replace function queue_pg.forget_steps(id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from queue_pg.stepped_jobs s where s.job_id = forget_steps.id;
  delete from queue_pg.job_signals s where s.job_id = forget_steps.id;
  delete from queue_pg.job_steps s where s.job_id = forget_steps.id;
end
$$;

-- Removes the steps and signals of jobs that are forgotten. A job that lives is looked at again in an hour, one that has
-- ended at the end of its retention; readers see the steps of jobs that can be read, so nobody notices the hour. True when
-- there may be more.
create or replace function queue_pg.sweep_steps(max_jobs integer default 1000, max_steps integer default 10000)
returns boolean
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
  v_looked bigint;
begin
  with due as materialized (
    select s.job_id, s.steps + s.signals as rows, s.look_at from queue_pg.stepped_jobs s
    where s.look_at <= v_now order by s.look_at limit max_jobs for update skip locked
  ),
  looked as materialized (
    select d.job_id, exists (select from queue_pg.jobs j where j.id between d.job_id and d.job_id) as live,
      (select f.retain_until from queue_pg.finished_jobs f where f.id = d.job_id limit 1) as retain_until
    from (
      select e.*, sum(e.rows) over (order by e.look_at, e.job_id) - e.rows as before from due e
    ) d
    -- One job is always looked at, whatever it has.
    where d.before < max_steps
  ),
  kept as (
    update queue_pg.stepped_jobs s
    set look_at = case when l.live then v_now + interval '1 hour' else l.retain_until end
    from looked l where s.job_id = l.job_id and (l.live or l.retain_until > v_now)
  ),
  gone as (
    delete from queue_pg.stepped_jobs s using looked l
    where s.job_id = l.job_id and not l.live and (l.retain_until > v_now) is not true
    returning s.job_id
  ),
  unsignalled as (
    delete from queue_pg.job_signals s using gone g where s.job_id = g.job_id
  ),
  forgotten as (
    delete from queue_pg.job_steps s using gone g where s.job_id = g.job_id
  )
  select count(*) into v_looked from looked;
  return v_looked > 0;
end
$$;
