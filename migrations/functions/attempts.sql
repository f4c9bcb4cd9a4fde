-- The attempts of a job, read from its events and its row: nothing is written for them.

-- Every attempt of a job, oldest first: those that started after the event number `after`, at most `max_rows`. No such job, or
-- one that was never claimed: no row.
--   seq, ended_seq   numbers of the events that began and ended it; what its handler said stands between them
--   attempt          as the job counted it then; a snoozed, suspended or released one, a lost lease and a retry by hand give it back
--   outcome          completed, failed, timeout, snoozed, suspended, planned, released, lease_lost or cancelled, as the event says
--                    (timeout: failed with that code); running; null: it has ended, and how is forgotten
--   waited_seconds   how long it could have been claimed before it was
--   ran_seconds      from the claim to the end, or until now
--   run_at           when the job was to run again
--   model, usage     of a completed one, where the result is an object that has them
-- What events_retention has dropped is told by a first row with the outcome forgotten and the number of the last such event:
-- attempts that ended by then are missing. One that was under way then is told as far as the job's row knows it.
-- STABLE, so that row and events are of one moment.
create or replace function queue_pg.attempts(id uuid, after integer default 0, max_rows integer default 1000)
returns table (
  seq integer, attempt integer, worker_id text, outcome text, started_at timestamptz, ended_at timestamptz,
  waited_seconds double precision, ran_seconds double precision, error jsonb, run_at timestamptz, ended_seq integer,
  model text, usage jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  -- These end an attempt whenever they are told; the others also end a job that waits.
  v_given_back constant text[] := '{snoozed,suspended,planned,released,lease_lost}';
  v_ends constant text[] := v_given_back || '{completed,failed,cancelled}';
  v_now timestamptz := queue_pg.now();
  v_after integer := greatest(coalesce(attempts.after, 0), 0);
  v_rows integer := 0;
  v_job record;
  v_event record;
  v_first integer;
  -- The last number that is forgotten.
  v_gap integer;
  v_forgotten boolean;
  -- No start has been seen, and there may be one that cannot be.
  v_blind boolean;
  -- What handlers have said after this number, the attempt at hand has said.
  v_since integer;
  v_open boolean := false;
  -- The open attempt has not ended among what is forgotten.
  v_sure boolean := true;
  v_ready_at timestamptz;
  v_suspended boolean := false;
begin
  select j.* into v_job
  from (
    select l.created_at::timestamptz, l.claimed_at, l.lease_expires_at is not null as running, l.attempt::integer, l.worker_id,
      l.lease_token > 0 as claimed, l.logged_token is distinct from l.lease_token as unlogged,
      greatest(l.last_event_seq, 1)::integer as stored, coalesce(l.parents_left, 0) > 0 as planned, null::jsonb as result
    from queue_pg.jobs l where l.id between attempts.id and attempts.id
    union all
    select f.created_at, f.started_at, false, f.attempt, f.worker_id, f.lease_token > 0,
      f.logged_token is distinct from f.lease_token, greatest(f.last_event_seq, 1), coalesce(f.parents_left, 0) > 0,
      -- As it is stored: a large one is not fetched for this.
      case when f.state = 'completed' and pg_column_size(f.result) <= 65536 then f.result end
    from queue_pg.finished_jobs f where f.id between attempts.id and attempts.id and f.retain_until > v_now
  ) j;
  if not found or not v_job.claimed then
    return;
  end if;

  select e.seq into v_first from queue_pg.job_events e
  where e.job_id = attempts.id and e.seq > v_after order by e.seq limit 1;
  v_gap := coalesce(v_first - 1, v_job.stored);
  -- Number 1, the submission, is never stored.
  v_forgotten := v_gap > greatest(v_after, 1);
  v_blind := v_forgotten or v_after = 0;
  v_since := v_gap;
  if v_forgotten then
    seq := v_gap;
    outcome := 'forgotten';
    return next;
    if v_job.claimed_at is not null and not v_job.unlogged and not exists (
      select from queue_pg.job_events e where e.job_id = attempts.id and e.seq > v_gap and e.type = 'started'
    ) then
      -- The start of the last attempt is forgotten, yet stands in the row.
      v_open := true;
      v_blind := false;
      -- Whatever was said since then, it has said.
      v_sure := v_job.running or exists (
        select from queue_pg.job_events e
        where e.job_id = attempts.id and e.seq > v_gap and not e.type = any (queue_pg.reserved_events()));
      seq := null;
      attempt := v_job.attempt;
      worker_id := v_job.worker_id;
      started_at := v_job.claimed_at;
    end if;
  elsif v_after = 0 then
    v_ready_at := v_job.created_at;
  end if;

  for v_event in
    select e.seq, e.at, e.type, e.data
    from (
      -- The one before tells since when the next attempt waited.
      select s.seq, s.at, s.type, s.data from queue_pg.job_events s
      where s.job_id = attempts.id and s.seq >= v_after
        and s.type = any (v_ends || '{started,promoted,retried,signalled,expired}')
      union all
      -- Those that have no row.
      select r.seq, r.at, r.type, r.data::jsonb
      from queue_pg.read_events(array[attempts.id], array[greatest(v_job.stored, v_after)]) r where r.seq is not null
    ) e
    order by e.seq
  loop
    exit when v_rows >= max_rows;
    if v_open and (v_event.type = 'started' or (not v_sure and v_event.type in ('promoted', 'retried', 'expired'))) then
      -- It must have ended before.
      outcome := case when not v_sure and v_job.planned then 'planned' end;
      attempt := case when v_sure or v_job.planned then attempt end;
      v_open := false;
      v_rows := v_rows + 1;
      return next;
      exit when v_rows >= max_rows;
    end if;

    if v_event.type = any (v_ends) and v_event.seq > v_after then
      if v_blind and not v_open and (
        v_event.type = any (v_given_back) or v_event.data ? 'run_at' or exists (
          select from queue_pg.job_events e
          where e.job_id = attempts.id and e.seq > v_since and e.seq < v_event.seq
            and not e.type = any (queue_pg.reserved_events()))
      ) then
        -- An attempt of which the end alone is left.
        v_open := true;
        v_sure := true;
        seq := null;
        started_at := null;
        waited_seconds := null;
      end if;
      if v_open then
        if v_sure or v_event.type = any (v_given_back) or v_event.data ? 'run_at'
          or (v_event.type <> 'cancelled' and not v_job.planned)
        then
          attempt := (v_event.data ->> 'attempt')::integer;
          worker_id := v_event.data ->> 'worker_id';
          ended_at := v_event.at;
          ended_seq := v_event.seq;
          error := v_event.data -> 'error';
          run_at := (v_event.data ->> 'run_at')::timestamptz;
          outcome := case when v_event.type = 'failed' and error ->> 'code' = 'timeout' then 'timeout' else v_event.type end;
          ran_seconds := extract(epoch from ended_at - started_at);
          if v_event.type = 'completed' and jsonb_typeof(v_job.result) = 'object' then
            model := case when jsonb_typeof(v_job.result -> 'model') = 'string' then left(v_job.result ->> 'model', 1000) end;
            usage := case when jsonb_typeof(v_job.result -> 'usage') = 'object' then v_job.result -> 'usage' end;
          end if;
        else
          -- That ended a job that waited for its subtasks, or again for a worker.
          outcome := case when v_job.planned then 'planned' end;
          attempt := case when v_job.planned then attempt end;
        end if;
        v_open := false;
        v_rows := v_rows + 1;
        return next;
      end if;
    end if;

    if v_event.type = 'started' then
      v_blind := false;
      if v_event.seq > v_after then
        v_open := true;
        v_sure := true;
        seq := v_event.seq;
        attempt := (v_event.data ->> 'attempt')::integer;
        worker_id := v_event.data ->> 'worker_id';
        started_at := v_event.at;
        -- Null when it is not known since when.
        waited_seconds := extract(epoch from greatest(started_at, v_ready_at) - v_ready_at);
        outcome := null;
        ended_at := null;
        ended_seq := null;
        error := null;
        run_at := null;
        ran_seconds := null;
      end if;
    elsif v_event.type <> 'signalled' then
      v_ready_at := v_event.at;
      v_since := v_event.seq;
      v_suspended := v_event.type = 'suspended';
    elsif v_suspended then
      -- A signal has it claimed before its time; one that it does not wait for cannot be told from that.
      v_ready_at := v_event.at;
    end if;
  end loop;

  if v_open and v_rows < max_rows then
    if v_job.running then
      outcome := 'running';
      ran_seconds := greatest(extract(epoch from v_now - started_at), 0);
    else
      outcome := case when v_job.planned then 'planned' end;
      attempt := case when v_sure or v_job.planned then attempt end;
    end if;
    return next;
  end if;
end
$$;

comment on function queue_pg.attempts is
  'The attempts of a job, oldest first, with how each ended: select * from queue_pg.attempts(id).';
