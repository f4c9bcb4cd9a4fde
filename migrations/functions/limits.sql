-- Limits of work in flight: setting them, and giving back what an attempt took. limited.sql has the claim.
--
-- A limit is one row with a count of what runs. The claim that starts an attempt adds to it and writes into the job which
-- limits count it (jobs.counted); whatever ends the attempt takes it off again, in the same transaction: job and count
-- cannot disagree, not after a crash either. Counts belong to the mark on the job and not to its key, so a limit that
-- is made, changed or removed while jobs run counts right.
--
-- Locks are taken in one order: rows of jobs, then limits by (org, scope, name). A claim has to look at the limit
-- before it knows how many jobs to take; it skips jobs that are locked, and gives up on a limit after a moment.

create or replace function queue_pg.limit_opens(
  full_at timestamptz, unit interval, burst integer, cost integer, paused_until timestamptz) returns timestamptz
language sql immutable parallel safe
return coalesce(greatest(
  paused_until, case when unit is not null and full_at > '-infinity' then full_at - unit * (burst - least(cost, burst)) end),
  '-infinity');

comment on function queue_pg.limit_opens is
  'From when on a job of this cost may start: as soon as the bucket holds its cost, or is full.';

-- Makes the row of a limit, or locks the one there is. If it is to limit something (`counts`), what runs already counts
-- from now on. Of claims that are under way at this very moment the jobs are not seen: they run uncounted.
create or replace function queue_pg.keep_limit(org text, scope text, name text, counts boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bit constant integer := case scope when 'queue' then 1 else 2 end;
  v_running integer := 0;
  v_added integer;
begin
  if scope is null or scope not in ('queue', 'key') then
    perform queue_pg.raise_invalid('scope', 'must be queue or key');
  elsif name is null or length(name) not between 1 and (case scope when 'queue' then 200 else 255 end) then
    perform queue_pg.raise_invalid('name',
      format('must have 1 to %s characters', case scope when 'queue' then 200 else 255 end));
  elsif org is null or length(org) not between 1 and 200 then
    perform queue_pg.raise_invalid('org', 'must have 1 to 200 characters');
  end if;
  perform pg_advisory_xact_lock(7310579610401947749);
  if not counts then
    insert into queue_pg.limits (org, scope, name) values (keep_limit.org, keep_limit.scope, keep_limit.name)
    on conflict on constraint limits_pkey do nothing;
  elsif not exists (
    select from queue_pg.limits l
    where l.org = keep_limit.org and l.scope = keep_limit.scope and l.name = keep_limit.name and l.counts
  ) then
    -- A template has no jobs of its own.
    with counting as (
      select j.id, coalesce(j.counted & v_bit, 0) as was from queue_pg.jobs j
      where j.state = 'running' and j.org = keep_limit.org
        and case keep_limit.scope when 'queue' then j.queue = keep_limit.name else j.limit_key = keep_limit.name end
      order by j.id for update
    ),
    counted as (
      update queue_pg.jobs j set counted = coalesce(j.counted, 0) | v_bit
      from counting c where j.id = c.id and j.state = 'running' returning c.was
    )
    select count(*), count(*) filter (where c.was = 0) into v_running, v_added from counted c;
    insert into queue_pg.limits as l (org, scope, name, running)
    values (keep_limit.org, keep_limit.scope, keep_limit.name, v_running)
    -- A claim that made it from a template was faster: its count goes on from what it has.
    on conflict on constraint limits_pkey do update
    set running = case when l.counts then l.running + v_added else v_running end;
  end if;
  if scope = 'queue' then
    insert into queue_pg.queues as q (org, queue, limited) values (keep_limit.org, keep_limit.name, true)
    on conflict on constraint queues_pkey do update set limited = true where not q.limited;
  end if;
  perform queue_pg.lock_limits(org, scope, name);
end
$$;

-- Locks a limit, and for a template those made from it, in the order of all locks on limits.
create or replace function queue_pg.lock_limits(org text, scope text, name text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from queue_pg.limits l
  where l.org = lock_limits.org
    and ((l.scope = lock_limits.scope and l.name = lock_limits.name)
      or (lock_limits.scope = 'key' and l.template = lock_limits.name))
  order by l.org, l.scope, l.name for update;
end
$$;

-- Wakes the workers when a limit has opened by itself, for its rate or the end of its pause: called by maintain().
create or replace function queue_pg.open_limits(since timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_floor timestamptz := coalesce(since, v_now - interval '1 second') - interval '1 second';
begin
  if exists (select from queue_pg.limits l where l.opens_at > v_floor and l.opens_at <= v_now and l.opens_at > '-infinity') then
    perform queue_pg.wake();
  end if;
end
$$;

-- Limits a queue, or the jobs with a key, whatever queues they are in: at most `max_running` attempts at once, and no
-- more than `rate` units of cost started per second, minute, hour or day, `burst` (null: `rate`) of them at once after a
-- quiet time. Null is no limit. Calling it again replaces all of that; what runs goes on, a pause stays.
-- A key that ends with * is a template: the first job of each key that begins so makes a limit of that key's own.
-- `weight`, from 0.001 to 1000 (null: 1), is its share beside others. `ageing`, of a queue, is the wait from which on a job
-- has a part in one turn of eight, whatever its priority. A limit may consist of these alone.
create or replace function queue_pg.set_limit(
  scope text, name text, max_running integer default null, rate integer default null, per text default 'second',
  burst integer default null, org text default 'default', weight double precision default null,
  ageing interval default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unit interval;
  v_ageing interval := queue_pg.plain_interval(ageing);
begin
  if max_running is not null and max_running not between 1 and 1000000 then
    perform queue_pg.raise_invalid('max_running', 'must be from 1 to 1,000,000; to stop a limit''s jobs, pause it');
  elsif rate is not null and rate not between 1 and 1000000 then
    perform queue_pg.raise_invalid('rate', 'must be from 1 to 1,000,000');
  elsif rate is not null and (per is null or per not in ('second', 'minute', 'hour', 'day')) then
    perform queue_pg.raise_invalid('per', 'must be second, minute, hour or day');
  elsif burst is not null and rate is null then
    perform queue_pg.raise_invalid('burst', 'needs a rate');
  elsif burst is not null and burst not between 1 and 1000000 then
    perform queue_pg.raise_invalid('burst', 'must be from 1 to 1,000,000');
  elsif weight is not null and weight not between 0.001 and 1000 then
    perform queue_pg.raise_invalid('weight', 'must be from 0.001 to 1,000');
  elsif ageing is not null and scope is distinct from 'queue' then
    perform queue_pg.raise_invalid('ageing', 'is of a queue; its keys have it too');
  elsif not queue_pg.is_duration(v_ageing, '100 milliseconds', '365 days') then
    perform queue_pg.raise_invalid('ageing', 'must be from 100 ms to 365 days');
  elsif max_running is null and rate is null and weight is null and ageing is null then
    perform queue_pg.raise_invalid('max_running', 'give it, rate, weight or ageing; to end a limit, remove it');
  end if;
  perform queue_pg.keep_limit(org, scope, name, max_running is not null or rate is not null);
  -- Whole microseconds, rounded up: what is stored and added stays exact, and never above the rate.
  v_unit := case when rate is not null then make_interval(secs => ceil(
    case per when 'second' then 1e6 when 'minute' then 6e7 when 'hour' then 3.6e9 else 8.64e10 end / rate)::float8 / 1e6) end;
  update queue_pg.limits l
  set max_running = set_limit.max_running, rate = set_limit.rate,
    -- One that was made from a template is its own from now on.
    template = case when l.name <> set_limit.name then l.template end,
    per = case when set_limit.rate is not null then set_limit.per end,
    burst = case when set_limit.rate is not null then coalesce(set_limit.burst, set_limit.rate) end,
    weight = set_limit.weight, ageing = v_ageing,
    -- What was taken stays taken, in units.
    full_at = case when v_unit is null or l.unit is null or l.full_at <= queue_pg.now() then '-infinity'
      else queue_pg.now() + make_interval(secs => least(
        extract(epoch from l.full_at - queue_pg.now()) / extract(epoch from l.unit) * extract(epoch from v_unit), 315360000)::float8)
      end,
    unit = v_unit
  where l.org = set_limit.org
    and ((l.scope = set_limit.scope and l.name = set_limit.name) or (set_limit.scope = 'key' and l.template = set_limit.name));
  update queue_pg.limits l
  set opens_at = queue_pg.limit_opens(l.full_at, l.unit, l.burst, 1, l.paused_until)
  where l.org = set_limit.org
    and ((l.scope = set_limit.scope and l.name = set_limit.name) or (set_limit.scope = 'key' and l.template = set_limit.name));
  perform queue_pg.wake();
end
$$;

comment on function queue_pg.set_limit is
  'Limits a queue or a key, or sets its share: select queue_pg.set_limit(''key'', ''tenant-7'', max_running => 5, rate => 60, per => ''minute'').';

-- For remove_limit(): takes the mark off attempts that a limit, or those made from a template, count. False: some that
-- others have locked still have it, which it does not wait for with `skip_locked`.
create or replace function queue_pg.unmark_attempts(org text, scope text, name text, skip_locked boolean) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bit constant integer := case scope when 'queue' then 1 else 2 end;
  v_names text[];
  v_ids uuid[];
begin
  select array_agg(l.name) into v_names from queue_pg.limits l
  where l.org = unmark_attempts.org and l.scope = unmark_attempts.scope
    and (l.name = unmark_attempts.name or (unmark_attempts.scope = 'key' and l.template = unmark_attempts.name));
  if v_names is null then
    return true;
  end if;
  if skip_locked then
    select array_agg(m.id) into v_ids from (
      select j.id from queue_pg.jobs j
      where j.state = 'running' and j.org = unmark_attempts.org and j.counted & v_bit <> 0
        and case v_bit when 1 then j.queue::text else j.limit_key::text end = any (v_names)
      order by j.id for update skip locked) m;
  else
    select array_agg(m.id) into v_ids from (
      select j.id from queue_pg.jobs j
      where j.state = 'running' and j.org = unmark_attempts.org and j.counted & v_bit <> 0
        and case v_bit when 1 then j.queue::text else j.limit_key::text end = any (v_names)
      order by j.id for update) m;
  end if;
  update queue_pg.jobs j set counted = nullif(j.counted & ~v_bit, 0)
  from unnest(v_ids) as m (id) where j.id between m.id and m.id;
  return not exists (
    select from queue_pg.jobs j
    where j.state = 'running' and j.org = unmark_attempts.org and j.counted & v_bit <> 0
      and case v_bit when 1 then j.queue::text else j.limit_key::text end = any (v_names));
end
$$;

-- The same, for who holds jobs already: does not wait for any longer than a moment. False: somebody kept one, and none is marked off.
create or replace function queue_pg.unmark_attempts_soon(org text, scope text, name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '250ms'
as $$
begin
  perform queue_pg.unmark_attempts(org, scope, name, false);
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end
$$;

-- Returns whether there was one. What runs goes on; a template takes the limits made from it along.
create or replace function queue_pg.remove_limit(scope text, name text, org text default 'default') returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_removed integer;
begin
  perform pg_advisory_xact_lock(7310579610401947749);
  -- What runs is no longer counted: a limit that a template makes of the same key must not be given back what it has
  -- never had. Jobs are locked before limits, so those that start meanwhile are looked for again.
  <<unmarking>>
  loop
    begin
      -- Waits for jobs in the order of their ids, and has none yet.
      perform queue_pg.unmark_attempts(org, scope, name, false);
      loop
        begin
          perform queue_pg.lock_limits(org, scope, name);
          -- One that somebody else has locked may be about to end, and waits for the limit.
          exit unmarking when queue_pg.unmark_attempts(org, scope, name, true);
          raise no_data_found;
        exception when no_data_found then
          null; -- The limits are let go again.
        end;
        -- Those that are left may be before those that are held: who keeps one may wait for these.
        exit when not queue_pg.unmark_attempts_soon(org, scope, name);
      end loop;
      raise no_data_found;
    exception when no_data_found then
      null; -- The jobs are let go, too, and it starts anew.
    end;
  end loop;
  with removed as (
    delete from queue_pg.limits l
    where l.org = remove_limit.org
      and ((l.scope = remove_limit.scope and l.name = remove_limit.name)
        or (remove_limit.scope = 'key' and l.template = remove_limit.name))
    returning 1
  )
  select count(*) into v_removed from removed;
  if scope = 'queue' then
    update queue_pg.queues q set limited = false where q.org = remove_limit.org and q.queue = remove_limit.name and q.limited;
  end if;
  if v_removed > 0 then
    perform queue_pg.wake();
  end if;
  return v_removed > 0;
end
$$;

comment on function queue_pg.remove_limit is 'Removes a limit; returns whether there was one.';

-- Stops claims of a key's jobs, or of a queue's, until a moment or until resumed. What runs goes on.
create or replace function queue_pg.pause_limit(
  scope text, name text, until timestamptz default null, org text default 'default') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform queue_pg.keep_limit(org, scope, name, true);
  update queue_pg.limits l
  set paused_until = coalesce(pause_limit.until, 'infinity'),
    opens_at = queue_pg.limit_opens(l.full_at, l.unit, l.burst, 1, coalesce(pause_limit.until, 'infinity'))
  where l.org = pause_limit.org
    and ((l.scope = pause_limit.scope and l.name = pause_limit.name) or (pause_limit.scope = 'key' and l.template = pause_limit.name));
  perform queue_pg.wake_due(pause_limit.until);
end
$$;

comment on function queue_pg.pause_limit is 'Stops claims under a limit until a moment, or until resumed.';

-- Returns whether there is such a limit.
create or replace function queue_pg.resume_limit(scope text, name text, org text default 'default') returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found boolean;
begin
  perform queue_pg.lock_limits(org, scope, name);
  update queue_pg.limits l
  set paused_until = null, opens_at = queue_pg.limit_opens(l.full_at, l.unit, l.burst, 1, null)
  where l.org = resume_limit.org
    and ((l.scope = resume_limit.scope and l.name = resume_limit.name) or (resume_limit.scope = 'key' and l.template = resume_limit.name));
  v_found := found;
  perform queue_pg.wake();
  return v_found;
end
$$;

comment on function queue_pg.resume_limit is 'Allows claims under a paused limit again; returns whether there is such a limit.';

-- Takes attempts off the limits that count them; one entry for each job, whose row the caller has locked. Wakes those who
-- may have waited for it.
create or replace function queue_pg.free_slots(orgs text[], queues text[], limit_keys text[], counted smallint[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_keys text[];
  v_key_orgs text[];
  v_queues text[];
  v_queue text := '';
begin
  with freed as (
    select f.org, s.scope, s.name, count(*)::integer as attempts
    from unnest(orgs, free_slots.queues, limit_keys, free_slots.counted) as f (org, queue, limit_key, counted)
    cross join lateral (values ('queue', f.queue, 1), ('key', f.limit_key, 2)) as s (scope, name, bit)
    where f.counted & s.bit <> 0
    group by f.org, s.scope, s.name
  ),
  locked as materialized (
    select l.org, l.scope, l.name, l.running >= l.max_running as was_full, f.attempts
    from freed f join queue_pg.limits l on l.org = f.org and l.scope = f.scope and l.name = f.name
    order by l.org, l.scope, l.name
    for update of l
  ),
  changed as (
    update queue_pg.limits l set running = greatest(l.running - k.attempts, 0)
    from locked k where l.org = k.org and l.scope = k.scope and l.name = k.name
    returning l.org, l.scope, l.name, k.was_full
  )
  select array_agg(c.name) filter (where c.scope = 'key'), array_agg(c.org) filter (where c.scope = 'key'),
    array_agg(distinct c.name) filter (where c.scope = 'queue')
  into v_keys, v_key_orgs, v_queues
  from changed c where c.was_full;
  if v_keys is not null then
    -- A key's jobs may be in any queue. From queue to queue by one probe each; there are few.
    for _ in 1..100 loop
      select j.queue into v_queue from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is not null and j.queue > v_queue order by j.queue limit 1;
      exit when v_queue is null;
      if exists (
        select from unnest(v_key_orgs, v_keys) as k (org, name)
        join queue_pg.jobs j on j.queue = v_queue and j.org = k.org and j.limit_key = k.name
        where j.state = 'queued' and j.limit_key is not null)
      then
        v_queues := v_queues || v_queue;
      end if;
    end loop;
  end if;
  perform queue_pg.wake(q) from (select distinct q from unnest(v_queues) q) w;
end
$$;

-- The same by id, for attempts that end while their jobs stay; the caller has locked them.
create or replace function queue_pg.uncount_attempts(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  perform queue_pg.free_slots(array_agg(j.org::text), array_agg(j.queue::text), array_agg(j.limit_key::text), array_agg(j.counted))
  from unnest(ids) as i (id) join queue_pg.jobs j on j.id between i.id and i.id
  where j.counted is not null
  having count(*) > 0;
  update queue_pg.jobs j set counted = null
  from unnest(ids) as i (id) where j.id between i.id and i.id and j.counted is not null;
end
$$;

-- Counts anew what runs under each limit and returns those whose count was wrong, which cannot happen unless somebody has
-- written to the tables by hand. The lock comes first: who holds it has changed count and jobs in one transaction.
create or replace function queue_pg.recount_limits()
returns table (org text, scope text, name text, was integer, running integer)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_limit record;
  v_running integer;
begin
  for v_limit in select l.org, l.scope, l.name from queue_pg.limits l order by l.org, l.scope, l.name loop
    select l.running into was from queue_pg.limits l
    where l.org = v_limit.org and l.scope = v_limit.scope and l.name = v_limit.name for update;
    continue when not found;
    select count(*) into v_running from queue_pg.jobs j
    where j.state = 'running' and j.org = v_limit.org and case v_limit.scope
      when 'queue' then j.queue = v_limit.name and j.counted & 1 <> 0
      else j.limit_key = v_limit.name and j.counted & 2 <> 0 end;
    if v_running <> was then
      update queue_pg.limits l set running = v_running
      where l.org = v_limit.org and l.scope = v_limit.scope and l.name = v_limit.name;
      org := v_limit.org;
      scope := v_limit.scope;
      name := v_limit.name;
      running := v_running;
      return next;
    end if;
  end loop;
end
$$;

comment on function queue_pg.recount_limits is 'Counts anew what runs under each limit; returns those whose count was wrong.';

-- Forgets limits that were made from templates and hold nothing: the next job of the key makes them again.
create or replace function queue_pg.tidy_limits(max_limits integer default 1000) returns integer
language sql
set search_path = pg_catalog, pg_temp
as $$
  with idle as (
    select l.org, l.scope, l.name from queue_pg.limits l
    where l.template is not null and l.running = 0 and l.full_at < queue_pg.now()
      and (l.paused_until is null or l.paused_until < queue_pg.now())
    order by l.org, l.scope, l.name limit max_limits for update skip locked
  ),
  removed as (
    delete from queue_pg.limits l using idle i
    where l.org = i.org and l.scope = i.scope and l.name = i.name returning 1
  )
  select count(*)::integer from removed
$$;

comment on function queue_pg.tidy_limits is 'Forgets limits made from templates that hold nothing; returns how many.';

create or replace view queue_pg.limits_now as
select
  l.org, l.scope, l.name,
  case when l.paused_until > queue_pg.now() then 'paused'
    when l.running >= l.max_running then 'full'
    when l.opens_at > queue_pg.now() then 'rate'
    else 'open' end as status,
  l.running, l.max_running,
  case when l.rate is not null then format('%s per %s', l.rate, l.per) end as rate,
  case when l.unit is not null then greatest(l.burst - ceil(
    greatest(extract(epoch from greatest(l.full_at, queue_pg.now()) - queue_pg.now()), 0) / extract(epoch from l.unit)
  ), 0)::integer end as units_left,
  case when l.opens_at > queue_pg.now() and l.opens_at < 'infinity' then l.opens_at end as opens_at,
  l.template, l.weight, l.ageing
from queue_pg.limits l;

comment on view queue_pg.limits_now is 'Every limit with what runs under it, whether it lets a job start now, and its share.';

-- Why a queued job may not start for the limits of its key and its queue: at most one row, as of why_waiting().
create or replace function queue_pg.why_limited(job queue_pg.all_jobs)
returns table (reason text, detail text, until timestamptz, held_by text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_limit queue_pg.limits;
  v_called text;
  v_opens timestamptz;
begin
  for v_limit in
    (select l.* from queue_pg.limits l
      where l.org = job.org and l.scope = 'key'
        -- Before its first use a key has the limit that its template says.
        and (l.name = job.limit_key or (l.template is null and right(l.name, 1) = '*' and starts_with(job.limit_key, left(l.name, -1))))
      order by l.name = job.limit_key desc, length(l.name) desc limit 1)
    union all
    (select l.* from queue_pg.limits l where l.org = job.org and l.scope = 'queue' and l.name = job.queue)
  loop
    v_called := format('%s %s', case v_limit.scope when 'key' then 'Key' else 'Queue' end, v_limit.name);
    v_opens := queue_pg.limit_opens(v_limit.full_at, v_limit.unit, v_limit.burst, job.cost, null);
    if v_limit.paused_until > v_now then
      reason := 'limit_paused';
      detail := format('%s is paused%s.', v_called,
        case when v_limit.paused_until < 'infinity' then format(' until %s', v_limit.paused_until) else ' until it is resumed' end);
      until := nullif(v_limit.paused_until, 'infinity');
      held_by := v_limit.name;
    elsif v_limit.running >= v_limit.max_running then
      reason := 'limit_full';
      detail := format('%s lets %s run at once, and %s do.', v_called, v_limit.max_running, v_limit.running);
      select array_to_string(array_agg(h.id), ', ') into held_by from (
        select j.id from queue_pg.jobs j
        where j.state = 'running' and j.org = v_limit.org and case v_limit.scope
          when 'queue' then j.queue = v_limit.name and j.counted & 1 <> 0
          else j.limit_key = v_limit.name and j.counted & 2 <> 0 end
        order by j.claimed_at limit 10) h;
    elsif v_opens > v_now then
      reason := 'limit_rate';
      detail := format('%s lets %s unit(s) start per %s; for a job of cost %s it opens again at %s.',
        v_called, v_limit.rate, v_limit.per, job.cost, v_opens);
      until := v_opens;
      held_by := v_limit.name;
    else
      continue;
    end if;
    return next;
    return;
  end loop;
end
$$;
