-- How many workers a queue needs, for autoscalers.
--
-- What is counted is bounded by what can matter, some jobs for each of the most workers that there may be, so that a look at a
-- queue of a million jobs reads some thousand entries of an index, and none of the table.

-- How many attempts a limit lets run at once: null, any number. A rate lets as many run as start while one takes its time.
create or replace function queue_pg.limit_room(lim queue_pg.limits, job_seconds double precision) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when lim.paused_until > queue_pg.now() then 0
    else least(
      lim.max_running::bigint,
      case when lim.rate is not null and job_seconds is not null then ceil(least(greatest(
        lim.rate * job_seconds / case lim.per when 'second' then 1 when 'minute' then 60 when 'hour' then 3600 else 86400 end, 1), 1e9))
      end::bigint) end
$$;

-- Looks at a queue and says how many workers it needs. Either one for every `jobs_per_worker` jobs that are queued or running
-- (null: one for as many as it runs at once), or with `target_wait` as many as start what is queued within that time, at
-- `job_seconds` a job (null: as the newest ones that have ended took). `slots` is how many jobs a worker runs at once (null: as those
-- that live do, else 10). More slots than the limits of the queue and of its keys let run are not wanted. A paused queue
-- needs workers for what runs alone, and a draining one none for `min_workers` either.
create or replace function queue_pg.scale(
  queue text, slots integer default null, jobs_per_worker double precision default null, target_wait interval default null,
  job_seconds double precision default null, min_workers integer default 0, max_workers integer default 100,
  org text default null,
  out desired_workers integer, out state text, out queued bigint, out running bigint, out startable bigint,
  out slots_per_worker integer, out seconds_per_job double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  v_most_counted constant bigint := 100000;
  v_most_keys constant integer := 1000;
  v_most_orgs constant integer := 1000;
  v_newest constant integer := 1000;
  v_now timestamptz := queue_pg.now();
  v_wait double precision := extract(epoch from target_wait);
  v_cap bigint;
  v_keys integer := 0;
  v_org text := '';
  v_key text;
  v_count bigint;
  v_lane bigint;
  v_room bigint;
  v_limit queue_pg.limits;
  v_paused boolean;
  v_wanted double precision;
  v_per_worker double precision;
begin
  if queue is null or length(queue) not between 1 and 200 then
    perform queue_pg.raise_invalid('queue', 'must have 1 to 200 characters');
  elsif slots not between 1 and 100000 then
    perform queue_pg.raise_invalid('slots', 'must be from 1 to 100,000');
  elsif jobs_per_worker is not null and not (jobs_per_worker between 0.001 and 1e9) then
    perform queue_pg.raise_invalid('jobs_per_worker', 'must be from 0.001 to 1,000,000,000');
  elsif v_wait is not null and not (v_wait between 0.001 and 31536000) then
    perform queue_pg.raise_invalid('target_wait', 'must be from 1 ms to 365 days');
  elsif v_wait is not null and jobs_per_worker is not null then
    perform queue_pg.raise_invalid('target_wait', 'excludes jobs_per_worker; give one of them');
  elsif job_seconds is not null and not (job_seconds between 0.000001 and 31536000) then
    perform queue_pg.raise_invalid('job_seconds', 'must be from 0.000001 to 31,536,000');
  elsif min_workers is null or min_workers not between 0 and 100000 then
    perform queue_pg.raise_invalid('min_workers', 'must be from 0 to 100,000');
  elsif max_workers is null or max_workers not between 0 and 100000 then
    perform queue_pg.raise_invalid('max_workers', 'must be from 0 to 100,000');
  elsif min_workers > max_workers then
    perform queue_pg.raise_invalid('min_workers', 'is more than max_workers');
  end if;

  select coalesce(slots, round(avg(greatest(w.capacity, 1)))::integer, 10) into slots_per_worker
  from queue_pg.workers w
  where scale.queue = any (w.queues) and not w.stopping and w.heartbeat_at > v_now - interval '60 seconds';
  seconds_per_job := job_seconds;
  if seconds_per_job is null then
    select avg(greatest(extract(epoch from n.finished_at - n.started_at), 0.000001)) into seconds_per_job
    from (
      select f.queue, f.org, f.state, f.started_at, f.finished_at from queue_pg.finished_jobs f
      order by f.id desc limit v_newest) n
    where n.queue = scale.queue and (scale.org is null or n.org = scale.org) and n.state <> 'cancelled'
      and n.started_at is not null;
  end if;
  v_per_worker := coalesce(jobs_per_worker, slots_per_worker);
  v_cap := least(v_most_counted, greatest(ceil(max_workers * case
    when v_wait is null then greatest(v_per_worker, slots_per_worker)
    else slots_per_worker * greatest(v_wait / coalesce(seconds_per_job, v_wait), 1) end), 0)::bigint + 1);

  -- Leases that expired long ago, of which the index may hold many dead entries, are nobody's.
  select count(*) into running
  from (
    select j.queue, j.org from queue_pg.jobs j
    where j.state = 'running' and j.lease_expires_at > v_now - interval '1 hour') r
  where r.queue = scale.queue and (scale.org is null or r.org = scale.org);
  -- What is due counts: with no worker at all, nobody may have made it claimable.
  select count(*) into queued
  from (
    select j.queue, j.org from queue_pg.jobs j
    where j.state = 'scheduled' and j.run_at <= v_now order by j.run_at limit v_newest) d
  where d.queue = scale.queue and (scale.org is null or d.org = scale.org);
  startable := queued;

  for _ in 1..v_most_orgs loop
    -- From tenant to tenant, and from key to key, by one probe each.
    if scale.org is not null then
      exit when v_org = scale.org;
      v_org := scale.org;
    else
      v_org := least(
        (select j.org::text from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is null and j.queue = scale.queue and j.org > v_org
          order by j.queue, j.org limit 1),
        (select j.org::text from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is not null and j.queue = scale.queue and j.org > v_org
          order by j.queue, j.org limit 1));
      exit when v_org is null;
    end if;
    exit when queued >= v_cap;
    select q.paused_until > v_now into v_paused from queue_pg.queues q where q.org = v_org and q.queue = scale.queue;
    select count(*) into v_count from (
      select from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = scale.queue and j.org = v_org
      limit v_cap - queued) c;
    queued := queued + v_count;
    v_lane := v_count;
    v_key := '';
    while v_keys < v_most_keys and queued < v_cap loop
      select j.limit_key::text into v_key from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is not null and j.queue = scale.queue and j.org = v_org and j.limit_key > v_key
      order by j.queue, j.org, j.limit_key limit 1;
      exit when v_key is null;
      v_keys := v_keys + 1;
      select count(*) into v_count from (
        select from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = scale.queue and j.org = v_org and j.limit_key = v_key
        limit v_cap - queued) c;
      queued := queued + v_count;
      -- Before its first use a key has the limit that its template says.
      select l.* into v_limit from queue_pg.limits l
      where l.org = v_org and l.scope = 'key'
        and (l.name = v_key or (l.template is null and right(l.name, 1) = '*' and starts_with(v_key, left(l.name, -1))))
      order by l.name = v_key desc, length(l.name) desc limit 1;
      v_room := case when found then queue_pg.limit_room(v_limit, seconds_per_job) end;
      v_lane := v_lane + case when v_room is null then v_count
        else least(v_count, greatest(v_room - case when v_limit.name = v_key then v_limit.running else 0 end, 0)) end;
    end loop;
    select l.* into v_limit from queue_pg.limits l where l.org = v_org and l.scope = 'queue' and l.name = scale.queue;
    v_room := case when found then queue_pg.limit_room(v_limit, seconds_per_job) end;
    if v_room is not null then
      v_lane := least(v_lane, greatest(v_room - v_limit.running, 0));
    end if;
    startable := startable + case when v_paused then 0 else v_lane end;
  end loop;

  select case when bool_or(q.draining) then 'draining' when bool_and(q.paused_until > v_now) then 'paused' else 'active' end
  into state from queue_pg.queues q where q.queue = scale.queue and (scale.org is null or q.org = scale.org);
  if state = 'paused' and startable > 0 then
    state := 'active';  -- of one tenant, and others have jobs
  end if;
  if startable = 0 then
    v_wanted := ceil(running / least(v_per_worker, slots_per_worker));
  elsif v_wait is null then
    v_wanted := least(ceil((queued + running) / v_per_worker), ceil((startable + running) / least(v_per_worker, slots_per_worker)));
  else
    v_wanted := ceil(least(
      startable + running,
      greatest(running, ceil(queued * coalesce(seconds_per_job, v_wait) / v_wait))) / slots_per_worker::float8);
  end if;
  desired_workers := least(max_workers, greatest(case when state = 'active' then min_workers else 0 end, v_wanted))::integer;
end
$$;

comment on function queue_pg.scale is 'How many workers a queue needs, and by what: jobs queued and running, those that limits let start, slots.';

create or replace function queue_pg.desired_workers(
  queue text, slots integer default null, jobs_per_worker double precision default null, target_wait interval default null,
  job_seconds double precision default null, min_workers integer default 0, max_workers integer default 100,
  org text default null) returns integer
language sql volatile as $$
  select s.desired_workers
  from queue_pg.scale(
    desired_workers.queue, desired_workers.slots, desired_workers.jobs_per_worker, desired_workers.target_wait,
    desired_workers.job_seconds, desired_workers.min_workers, desired_workers.max_workers, desired_workers.org) s
$$;

comment on function queue_pg.desired_workers is
  'How many workers a queue needs: select queue_pg.desired_workers(''default'', slots => 10, max_workers => 20).';
