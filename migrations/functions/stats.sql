-- Looking at queues.

-- One row per (org, queue) that has jobs, settings or history. Live states are counted; finished ones come from
-- counters, so history is never scanned.
create or replace function queue_pg.queue_stats(only_org text default null)
returns table (
  org text, queue text, paused boolean, paused_until timestamptz, scheduled bigint, waiting bigint, queued bigint,
  running bigint, completed bigint, failed bigint, cancelled bigint, oldest_queued_seconds double precision,
  draining boolean)
language sql volatile as $$
  with live as (
    select j.org, j.queue,
      count(*) filter (where j.state = 'scheduled') as scheduled,
      count(*) filter (where j.state = 'waiting') as waiting,
      count(*) filter (where j.state = 'queued') as queued,
      count(*) filter (where j.state = 'running') as running,
      min(j.run_at) filter (where j.state = 'queued') as oldest
    from queue_pg.jobs j
    where only_org is null or j.org = only_org
    group by j.org, j.queue
  ),
  finished as (
    select c.org, c.queue, sum(c.completed)::bigint as completed, sum(c.failed)::bigint as failed,
      sum(c.cancelled)::bigint as cancelled
    from queue_pg.queue_counters c
    where only_org is null or c.org = only_org
    group by c.org, c.queue
  ),
  configured as (
    select q.org, q.queue, q.paused_until, q.draining from queue_pg.queues q where only_org is null or q.org = only_org
  )
  select org, queue, coalesce(c.paused_until > queue_pg.now(), false),
    case when c.paused_until > queue_pg.now() and c.paused_until < 'infinity' then c.paused_until end,
    coalesce(l.scheduled, 0), coalesce(l.waiting, 0), coalesce(l.queued, 0), coalesce(l.running, 0),
    coalesce(f.completed, 0), coalesce(f.failed, 0), coalesce(f.cancelled, 0),
    case when l.oldest is not null then greatest(extract(epoch from queue_pg.now() - l.oldest), 0) end::double precision,
    coalesce(c.draining, false)
  from live l full join finished f using (org, queue) full join configured c using (org, queue)
  order by org, queue
$$;

comment on function queue_pg.queue_stats is 'Jobs by state for each queue, and how long the oldest has waited.';

-- Why a job is not running, for people: reason is one word, detail a sentence, until the moment it may change (null:
-- unknown), held_by who or what it waits for. No row when there is no such job.
create or replace function queue_pg.why_waiting(id uuid)
returns table (reason text, detail text, until timestamptz, held_by text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_job queue_pg.all_jobs;
  v_paused timestamptz;
  v_workers text[];
  v_free integer;
  v_ahead integer;
  v_parents integer;
  v_wait queue_pg.job_steps;
  v_holder text;
  v_draining text;
begin
  select j.* into v_job from queue_pg.job(why_waiting.id) j;
  if v_job.id is null then
    return;
  end if;
  if v_job.state in ('completed', 'failed', 'cancelled') then
    return query select 'finished', format('The job %s at %s.',
      case v_job.state when 'cancelled' then 'was cancelled' else v_job.state::text end, v_job.finished_at),
      null::timestamptz, null::text;
    return;
  elsif v_job.state = 'running' then
    return query select case when v_job.lease_expires_at < v_now then 'lease_expired' else 'running' end,
      case when v_job.lease_expires_at < v_now
        then format('Worker %s has let its lease expire; the reaper will give the job to another.', v_job.worker_id)
        else format('Attempt %s runs on worker %s.', v_job.attempt, v_job.worker_id) end,
      v_job.lease_expires_at, v_job.worker_id;
    return;
  elsif v_job.state = 'waiting' and exists (
    select from queue_pg.jobs j where j.id = v_job.id and j.cache_key is not null
      and not exists (select from queue_pg.dependencies d where d.child_id = j.id)
  ) then
    return query select 'shared', case when c.job_id is null then 'The same work is done; maintenance will answer it.'
        else format('Job %s does the same work.', c.job_id) end, null::timestamptz, c.job_id::text
    from queue_pg.jobs j left join queue_pg.cache_entries c on c.cache_key = j.cache_key where j.id = v_job.id;
    return;
  elsif v_job.state = 'waiting' then
    select count(*), count(*) filter (where d.outcome is null) into v_parents, v_ahead
    from queue_pg.dependencies d where d.child_id = v_job.id;
    return query select 'parents', case when v_ahead > 0 or v_parents = 0
        then format('The job waits for %s of its %s parent(s) to end.', v_ahead, v_parents)
        else 'All its parents have ended; maintenance releases it as soon as nobody has its row locked.' end,
      null::timestamptz,
      (select string_agg(p.parent_id::text, ', ') from (
        select d.parent_id from queue_pg.dependencies d where d.child_id = v_job.id and d.outcome is null
        order by d.name limit 10) p);
    return;
  elsif v_job.state = 'scheduled' then
    select w.* into v_wait from queue_pg.waits_of(v_job.id) w order by w.until limit 1;
    if found then
      return query select v_wait.type,
        case v_wait.type when 'event' then format('The job waits for the event %L.', v_wait.name)
          else format('The job sleeps (step %L).', v_wait.name) end,
        v_wait.until, case v_wait.type when 'event' then v_wait.name end;
      return;
    end if;
    if v_job.run_at <= v_now then
      return query select 'due', 'Its time has come; maintenance, a part of every worker, makes it claimable.', v_job.run_at,
        null::text;
    elsif v_job.error is not null and v_job.attempt > 0 then
      return query select 'retry', format('Attempt %s of %s failed (%s); the next one starts later.',
        v_job.attempt, v_job.max_attempts, v_job.error ->> 'code'), v_job.run_at, null::text;
    else
      return query select 'scheduled', 'The job is to start later.', v_job.run_at, null::text;
    end if;
    return;
  end if;

  select q.paused_until, case when q.draining then format(' Queue %s is draining: it takes no new jobs.', v_job.queue) end
  into v_paused, v_draining from queue_pg.queues q where q.org = v_job.org and q.queue = v_job.queue;
  if v_paused > v_now then
    return query select 'paused', format('Queue %s is paused%s.', v_job.queue,
      case when v_paused < 'infinity' then format(' until %s', v_paused) else ' until it is resumed' end),
      case when v_paused < 'infinity' then v_paused end, v_job.queue;
    return;
  end if;
  if v_job.expires_at <= v_now then
    return query select 'expired', 'Its deadline has passed; maintenance will fail it.', v_job.expires_at, null::text;
    return;
  end if;
  return query select l.* from queue_pg.why_limited(v_job) l;
  if found then
    return;
  end if;
  select array_agg(w.id order by w.id), sum(greatest(w.capacity - w.active, 0))
  into v_workers, v_free
  from queue_pg.workers w
  where w.heartbeat_at > v_now - interval '60 seconds' and not w.stopping
    and v_job.queue = any (w.queues) and v_job.kind = any (w.kinds);
  if v_workers is null then
    return query select 'no_worker',
      format('No live worker serves queue %s and can run kind %s.', v_job.queue, v_job.kind) || coalesce(v_draining, ''),
      null::timestamptz, null::text;
    return;
  end if;
  select count(*) into v_ahead from (
    select from queue_pg.jobs j
    where j.state = 'queued' and j.queue = v_job.queue and j.org = v_job.org
      -- Jobs with another key, or without one, have their turns beside it.
      and j.limit_key is not distinct from v_job.limit_key
      and (-j.priority::integer, j.run_at, j.id) < (-v_job.priority::integer, v_job.run_at, v_job.id)
    limit 10001) a;
  if v_ahead = 0 and v_free > 0 then
    -- One holder, as far as its row tells: several at once are recorded elsewhere.
    select format('pid %s%s', l.pid, ' (' || nullif(a.application_name, '') || ')') into v_holder
    from queue_pg.jobs j
    join pg_locks l on l.locktype = 'transactionid' and l.transactionid = j.xmax and l.granted
    left join pg_stat_activity a on a.pid = l.pid
    where j.id between v_job.id and v_job.id and l.pid <> pg_backend_pid() limit 1;
    if found then
      return query select 'locked', format('A transaction has locked its row: %s.', v_holder), null::timestamptz, v_holder;
      return;
    end if;
  end if;
  return query select case when v_ahead > 0 then 'behind' when v_free = 0 then 'no_free_slot' else 'next' end,
    case
      when v_ahead > 0 then format('%s job(s) of its %s are ahead of it.',
        case when v_ahead > 10000 then 'More than 10,000' else v_ahead::text end,
        case when v_job.limit_key is null then 'queue' else format('queue and key %s', v_job.limit_key) end)
      when v_free = 0 then format('All %s worker(s) that can run it are busy.', cardinality(v_workers))
      else 'A worker is free and will claim it now.' end || coalesce(v_draining, ''),
    null::timestamptz, array_to_string(v_workers[1:10], ', ');
end
$$;

comment on function queue_pg.why_waiting is 'Why a job is not running: reason, a sentence, until when, held by whom.';
