-- What people do to jobs and queues.

-- Ends an unfinished job as cancelled, at once, whatever its state. A running one loses its lease here: its worker is
-- told by NOTIFY queue_pg_cancel or notices by polling, and nothing it still writes counts.
-- A task that waits for its subtasks takes them along. Returns the job. An already cancelled job is returned as it is; a completed or failed one raises QP002.
create or replace function queue_pg.cancel(id uuid, reason text default null) returns setof queue_pg.all_jobs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_job queue_pg.jobs;
  v_state text;
  v_error jsonb := jsonb_build_object('code', 'cancelled', 'message', coalesce(cancel.reason, 'cancelled on request'));
begin
  loop
    select j.* into v_job from queue_pg.jobs j where j.id = cancel.id for update;
    if v_job.parents_left > 0 then
      perform queue_pg.end_cancelled(queue_pg.lock_families(array[v_job.id]), v_error);
      exit;
    elsif found then
      perform queue_pg.record_events(array[v_job.id], array['cancelled'], array[jsonb_build_object('error', v_error)]);
      perform queue_pg.retire(
        array[v_job.id], array['cancelled']::queue_pg.job_state[], array[null]::jsonb[], array[v_error]);
      if v_job.state = 'running' and (select s.notify from queue_pg.settings s) then
        perform queue_pg.send_hint('queue_pg_cancel', left(v_job.worker_id, 1000));
      end if;
      exit;
    end if;
    v_state := queue_pg.state_of(cancel.id);
    if v_state is null then
      perform queue_pg.raise_not_found(cancel.id);
    elsif v_state in ('completed', 'failed') then
      perform queue_pg.raise_wrong_state(cancel.id, 'cancel', v_state);
    end if;
    exit when v_state = 'cancelled';
    -- Live again: somebody retried it between the two looks.
  end loop;
  return query select a.* from queue_pg.job(cancel.id) a;
end
$$;

comment on function queue_pg.cancel is 'Ends an unfinished job as cancelled, a running one too.';

-- Puts a failed or cancelled job back into its queue with its attempts counted anew; the fence goes on from where it
-- was. Any other state raises QP002. A deadline that has passed is dropped: whoever retries wants it run. Finished steps
-- are kept, so that it goes on after the last one; `fresh`: they are done again. A job that failed because an event did
-- not come in time waits for it anew.
-- One that ended while it waited for parents waits for those that live again, and takes the others as they are. Of a task
-- the subtasks are retried that did not complete.
-- One that shares its work (see caching.sql) waits for a job that does it now, if there is one.
create or replace function queue_pg.retry(id uuid, max_attempts integer default null, fresh boolean default false)
returns setof queue_pg.all_jobs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_job queue_pg.finished_jobs;
  v_state text;
  v_parents_left integer;
  v_planned boolean;
  v_cache record;
  v_shares boolean := false;
begin
  if retry.max_attempts is not null and retry.max_attempts not between 1 and 1000 then
    perform queue_pg.raise_invalid('max_attempts', 'must be from 1 to 1000');
  end if;
  delete from queue_pg.finished_jobs f
  where f.id = retry.id and f.state in ('failed', 'cancelled') and f.retain_until > v_now
  returning f.* into v_job;
  if not found then
    v_state := queue_pg.state_of(retry.id);
    if v_state is null then
      perform queue_pg.raise_not_found(retry.id);
    end if;
    perform queue_pg.raise_wrong_state(retry.id, 'retry', v_state);
  end if;

  insert into queue_pg.queue_counters (org, queue, failed, cancelled, gone_failed, gone_cancelled)
  values (v_job.org, v_job.queue, -(v_job.state = 'failed')::integer, -(v_job.state = 'cancelled')::integer,
    (v_job.state = 'failed')::integer, (v_job.state = 'cancelled')::integer);
  update queue_pg.unique_keys u set expires_at = null
  where u.org = v_job.org and u.unique_key = v_job.unique_key and u.job_id = v_job.id;

  if v_job.cache_key is not null then
    -- Work that is being done is shared; one that is done is no answer to who wants it run.
    v_cache := queue_pg.enter_cache(
      v_job.cache_key, v_job.id, v_job.org, v_job.kind, v_job.queue, v_job.priority, true, '0', array[v_job.id]);
    v_shares := v_cache.step <> 'run';
    if v_shares and v_job.parents_left > 0 then
      -- It has been planned: work of its own is half done, so it takes part no more.
      v_shares := false;
      v_job.cache_key := null;
    end if;
  end if;
  if v_job.batch_id is not null then
    -- After the cache and before the parents, as with all who lock several of them.
    perform queue_pg.rejoin_batch(v_job.batch_id, v_job.id, v_job.state);
  end if;
  if v_job.parents_left > 0 then
    v_planned := queue_pg.retry_subtasks(v_job.id, retry.max_attempts, retry.fresh);
    v_parents_left := queue_pg.rejoin_parents(v_job.id);
  end if;

  insert into queue_pg.jobs (
    id, run_at, created_at, lease_token, logged_token, max_attempts, last_event_seq, cost, priority, org, queue, kind, payload,
    error, timeout, expires_at, unique_key, limit_key, parent_id, batch_id, tags, metadata, traceparent, rerun_of,
    parents_left, cache_key, state)
  values (
    -- The attempts so far are told already; the next one begins with the next token.
    v_job.id, v_now, v_job.created_at, v_job.lease_token, v_job.lease_token, coalesce(retry.max_attempts, v_job.max_attempts),
    v_job.last_event_seq, v_job.cost, v_job.priority, v_job.org, v_job.queue, v_job.kind, v_job.payload, v_job.error,
    v_job.timeout, case when v_job.expires_at > v_now then v_job.expires_at end,
    -- A key that meanwhile names another job stays with that one.
    (select u.unique_key from queue_pg.unique_keys u
      where u.org = v_job.org and u.unique_key = v_job.unique_key and u.job_id = v_job.id),
    v_job.limit_key, v_job.parent_id, v_job.batch_id, v_job.tags, v_job.metadata, v_job.traceparent, v_job.rerun_of,
    -- None lives: looked at at once, below.
    case when v_parents_left is null then v_job.parents_left else greatest(v_parents_left, 1) end,
    v_job.cache_key,
    case when v_parents_left is null and not v_shares then 'queued' else 'waiting' end::queue_pg.job_state);
  if retry.fresh then
    perform queue_pg.forget_steps(v_job.id);
  elsif v_job.error ->> 'code' = 'event_timeout' then
    delete from queue_pg.job_steps s
    where s.job_id = v_job.id and s.name = v_job.error ->> 'event' and s.timed_out;
  end if;
  perform queue_pg.record_events(
    array[v_job.id], array['retried'], array[jsonb_build_object('was', v_job.state, 'error', v_job.error)]);
  -- A subtask may have ended since, and not well.
  if v_parents_left = 0 or v_planned then
    perform queue_pg.recheck_children(array[v_job.id]);
  end if;
  return query select a.* from queue_pg.job(retry.id) a;
end
$$;

comment on function queue_pg.retry is 'Puts a failed or cancelled job back into its queue, its attempts counted anew.';

-- Gives an unfinished job another priority, higher first; one that runs has it when it comes back into its queue. Returns the
-- job. Its priority already: nothing happens. Raises QP001, QP002 for a job that has ended, QP005.
create or replace function queue_pg.reprioritize(id uuid, priority integer) returns setof queue_pg.all_jobs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_was integer;
  v_state text;
begin
  if reprioritize.priority is null or reprioritize.priority not between -32768 and 32767 then
    perform queue_pg.raise_invalid('priority', 'must be from -32,768 to 32,767');
  end if;
  loop
    select j.priority into v_was from queue_pg.jobs j where j.id = reprioritize.id for no key update;
    if found then
      if v_was <> reprioritize.priority then
        perform queue_pg.record_events(
          array[reprioritize.id], array['reprioritized'],
          array[jsonb_build_object('was', v_was, 'priority', reprioritize.priority)]);
        update queue_pg.jobs j set priority = reprioritize.priority where j.id = reprioritize.id;
      end if;
      exit;
    end if;
    v_state := queue_pg.state_of(reprioritize.id);
    if v_state is null then
      perform queue_pg.raise_not_found(reprioritize.id);
    elsif v_state in ('completed', 'failed', 'cancelled') then
      perform queue_pg.raise_wrong_state(reprioritize.id, 'reprioritize', v_state);
    end if;
    -- Live again: somebody retried it between the two looks.
  end loop;
  return query select a.* from queue_pg.job(reprioritize.id) a;
end
$$;

comment on function queue_pg.reprioritize is 'Gives an unfinished job another priority, higher first.';

-- A queue is active, paused or draining; each of these three calls replaces what the others have said.

-- Stops claims from a queue, until a moment or until resumed. What runs goes on.
create or replace function queue_pg.pause_queue(queue text, until timestamptz default null, org text default 'default')
returns void
language sql as $$
  insert into queue_pg.queues as q (org, queue, paused_until)
  values (pause_queue.org, pause_queue.queue, coalesce(pause_queue.until, 'infinity'))
  on conflict on constraint queues_pkey do update set paused_until = excluded.paused_until, draining = false
$$;

comment on function queue_pg.pause_queue is 'Stops claims from a queue until a moment, or until resumed.';

create or replace function queue_pg.resume_queue(queue text, org text default 'default') returns void
language sql as $$
  update queue_pg.queues q set paused_until = null, draining = false
  where q.org = resume_queue.org and q.queue = resume_queue.queue;
  -- Armed or not: whoever waits has found nothing because of the pause.
  select queue_pg.wake()
$$;

comment on function queue_pg.resume_queue is 'Ends the pause of a queue, or has a draining one take jobs again.';

-- Has a queue take no new jobs, until resumed: every submission is refused (QP006), a plain INSERT and a COPY too. What is
-- there is done: claims go on, attempts are retried, a job that waits is released; retries by hand, subtasks that a job of
-- it plans and callbacks of batches belong to it. A transaction that has submitted before this one commits is not stopped.
--
-- An INSERT must not look into queues for it, so there is a bit in queue_pg.armed, which it reads anyway; only while some
-- queue is draining all look. The bit is set at once and never taken back by a rollback, so it is cleared by maintenance
-- alone, when no queue is draining.
create or replace function queue_pg.drain_queue(queue text, org text default 'default') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(7310579610401947747);
  perform setval('queue_pg.armed', pg_sequence_last_value('queue_pg.armed') | (1::bigint << 60));
  insert into queue_pg.queues as q (org, queue, draining) values (drain_queue.org, drain_queue.queue, true)
  on conflict on constraint queues_pkey do update set draining = true, paused_until = null;
  -- As resume_queue() does: whoever waits has found nothing, perhaps because of a pause.
  perform queue_pg.wake();
end
$$;

comment on function queue_pg.drain_queue is 'Has a queue take no new jobs until resumed; those it has are done.';

-- Makes the bit say whether a queue is draining; called by sweep(). The lock comes before the look, so that a queue that begins to
-- drain in between is seen.
create or replace function queue_pg.tidy_draining() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bit constant bigint := 1::bigint << 60;
  v_is_set boolean := pg_sequence_last_value('queue_pg.armed') & v_bit <> 0;
begin
  if v_is_set = exists (select from queue_pg.queues q where q.draining)
    or current_setting('transaction_isolation') not in ('read committed', 'read uncommitted')
    or not pg_try_advisory_xact_lock(7310579610401947747) then
    return;
  end if;
  v_is_set := exists (select from queue_pg.queues q where q.draining);
  perform setval('queue_pg.armed', case when v_is_set then pg_sequence_last_value('queue_pg.armed') | v_bit
    else pg_sequence_last_value('queue_pg.armed') & ~v_bit end);
end
$$;

-- '1 year' as hours: arithmetic with months depends on the month it starts in.
create or replace function queue_pg.plain_interval(value interval) returns interval
language sql immutable strict as $$ select make_interval(secs => extract(epoch from value)::float8) $$;

-- Sets what differs from the defaults for one queue; null leaves a value as it is.
create or replace function queue_pg.configure_queue(
  queue text, retention interval default null, lease interval default null, org text default 'default') returns void
language sql as $$
  insert into queue_pg.queues as q (org, queue, retention, lease)
  values (configure_queue.org, configure_queue.queue, queue_pg.plain_interval(configure_queue.retention),
    queue_pg.plain_interval(configure_queue.lease))
  on conflict on constraint queues_pkey do update
  set retention = coalesce(excluded.retention, q.retention), lease = coalesce(excluded.lease, q.lease)
$$;

comment on function queue_pg.configure_queue is 'Sets retention or lease of one queue; null leaves a value as it is.';

-- Sets instance-wide defaults; null leaves a value as it is. Retention applies to jobs that finish from now on.
create or replace function queue_pg.configure(
  retention interval default null,
  max_attempts integer default null,
  timeout interval default null,
  lease interval default null,
  retry_base interval default null,
  retry_cap interval default null,
  max_lease_losses integer default null,
  events_retention interval default null,
  notify boolean default null,
  max_events integer default null,
  max_artifact_bytes bigint default null,
  max_artifacts integer default null,
  max_job_artifact_bytes bigint default null) returns void
language sql as $$
  update queue_pg.settings s set
    retention = coalesce(queue_pg.plain_interval(configure.retention), s.retention),
    max_attempts = coalesce(configure.max_attempts, s.max_attempts),
    timeout = coalesce(queue_pg.plain_interval(configure.timeout), s.timeout),
    lease = coalesce(queue_pg.plain_interval(configure.lease), s.lease),
    retry_base = coalesce(queue_pg.plain_interval(configure.retry_base), s.retry_base),
    retry_cap = coalesce(queue_pg.plain_interval(configure.retry_cap), s.retry_cap),
    max_lease_losses = coalesce(configure.max_lease_losses, s.max_lease_losses),
    events_retention = coalesce(queue_pg.plain_interval(configure.events_retention), s.events_retention),
    notify = coalesce(configure.notify, s.notify),
    max_events = coalesce(configure.max_events, s.max_events),
    max_artifact_bytes = coalesce(configure.max_artifact_bytes, s.max_artifact_bytes),
    max_artifacts = coalesce(configure.max_artifacts, s.max_artifacts),
    max_job_artifact_bytes = coalesce(configure.max_job_artifact_bytes, s.max_job_artifact_bytes)
$$;

comment on function queue_pg.configure is 'Sets instance-wide defaults; null leaves a value as it is.';
