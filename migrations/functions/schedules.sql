-- Schedules: which moments they name (cron.sql has those of cron expressions), and the jobs made of them.
--
-- Who fires does not matter, nor how many do, nor what their clocks say. A fire locks its schedule, makes a job only with
-- a new row in schedule_fires, and moves next_fire_at past its own clock in the same transaction; from there it never goes
-- back. After a change of the schedule next_fire_at starts anew at the clock, and schedule_fires refuses what has fired.

-- Raises QP005 for what no schedule can be.
create or replace function queue_pg.check_schedule(schedule queue_pg.schedules) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text;
begin
  if coalesce(length(schedule.name) not between 1 and 200 or schedule.name ~ '[/[:cntrl:]]', true) then
    perform queue_pg.raise_invalid('name', 'must have 1 to 200 characters, without slashes and control characters');
  end if;
  if num_nonnulls(schedule.cron, schedule.every, schedule.at) <> 1 then
    perform queue_pg.raise_invalid('cron', 'give exactly one of cron, every and at');
  end if;
  if schedule.every is not null and not queue_pg.is_duration(schedule.every, '1 second', '3650 days') then
    perform queue_pg.raise_invalid('every', 'must be from 1 second to 3650 days');
  end if;
  if not queue_pg.is_duration(coalesce(schedule.jitter, '0'), '0', '1 day') then
    perform queue_pg.raise_invalid('jitter', 'must be from 0 to 1 day');
  end if;
  if coalesce(schedule.missed not in ('skip', 'once', 'all'), true) then
    perform queue_pg.raise_invalid('missed', 'must be skip, once or all');
  end if;
  if schedule.at not between '0001-01-01+00' and '9999-01-01+00' then
    perform queue_pg.raise_invalid('at', 'must be a time within the years 1 to 9998');
  end if;
  if schedule.starts_at not between '0001-01-01+00' and '9999-01-01+00' then
    perform queue_pg.raise_invalid('starts_at', 'must be a time within the years 1 to 9998');
  end if;
  if schedule.ends_at not between coalesce(schedule.starts_at, '0001-01-01+00') and '9999-01-01+00' then
    perform queue_pg.raise_invalid('ends_at', 'must be a time after starts_at, within the years 1 to 9998');
  end if;
  perform queue_pg.check_time_zone(schedule.time_zone);
  if schedule.cron is not null then
    perform queue_pg.cron_fields(schedule.cron);
  end if;
  if schedule.payload::text like '%{{%' then
    select t[1] into v_token from regexp_matches(schedule.payload::text, '\{\{ ?schedule\.([^} ]*) ?\}\}', 'g') t
    where t[1] not in ('name', 'fire_at') limit 1;
    if found then
      perform queue_pg.raise_invalid('payload', format('there is no {{ schedule.%s }}, only name and fire_at', left(v_token, 40)));
    end if;
  end if;
end
$$;

-- Refuses 0 0 30 2 *, the thirtieth of February.
create or replace function queue_pg.check_fires(schedule queue_pg.schedules) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if schedule.cron is not null and schedule.next_fire_at is null and schedule.ends_at is null and not coalesce(schedule.paused, false) then
    perform queue_pg.raise_invalid('cron', 'names no moment within 50 years');
  end if;
end
$$;

-- By shape first: Postgres would take FOO3 for a zone of that name, three hours behind, and CEST for one without summer.
create or replace function queue_pg.check_time_zone(time_zone text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(time_zone <> 'UTC' and (
    length(time_zone) > 100 or time_zone !~ '^[A-Za-z_]+(/[A-Za-z_-]+)+$' and time_zone !~ '^Etc/GMT([+-]?[0-9]|[+-]1[0-4])$'), true)
  then
    perform queue_pg.raise_invalid('time_zone', 'must be UTC or the name of a zone such as Europe/Berlin');
  end if;
  perform queue_pg.utc_offset(time_zone, 'epoch');
exception when invalid_parameter_value then
  perform queue_pg.raise_invalid('time_zone', format('the database knows no zone %s', quote_literal(time_zone)));
end
$$;

-- The first fire after a moment; null: there is none.
create or replace function queue_pg.next_fire(schedule queue_pg.schedules, after timestamptz) returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_after timestamptz := greatest(after, schedule.starts_at - interval '1 microsecond');
  -- In seconds: the day of an interval would be one of the session's own time zone.
  v_seconds numeric := extract(epoch from schedule.every);
  v_first timestamptz := coalesce(schedule.starts_at, schedule.created_at + v_seconds * interval '1 second');
  v_fire timestamptz;
begin
  if schedule.cron is not null then
    v_fire := queue_pg.next_cron_fire(schedule.cron, schedule.time_zone, v_after);
  elsif schedule.every is not null then
    v_fire := v_first
      + greatest(floor(extract(epoch from v_after - v_first) / v_seconds) + 1, 0) * v_seconds * interval '1 second';
  elsif schedule.at > v_after then
    v_fire := schedule.at;
  end if;
  return case when v_fire <= coalesce(schedule.ends_at, '9999-01-01+00') then v_fire end;
end
$$;

comment on function queue_pg.next_fire is 'The first fire of a schedule after a moment; null: there is none.';

-- The next fires as the schedule stands, from next_fire_at on.
create or replace function queue_pg.next_fires(schedule queue_pg.schedules, most integer default 5) returns timestamptz[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fire timestamptz := schedule.next_fire_at;
  v_fires timestamptz[] := '{}';
begin
  while v_fire is not null and cardinality(v_fires) < most loop
    v_fires := v_fires || v_fire;
    v_fire := queue_pg.next_fire(schedule, v_fire);
  end loop;
  return v_fires;
end
$$;

comment on function queue_pg.next_fires is 'The next fires of a schedule: select name, queue_pg.next_fires(s) from queue_pg.schedules s.';

-- When a schedule would fire, without making one. Raises QP005 for what makes no sense.
create or replace function queue_pg.preview_schedule(
  cron text default null, every interval default null, at timestamptz default null, time_zone text default 'UTC',
  starts_at timestamptz default null, ends_at timestamptz default null, after timestamptz default null,
  most integer default 5) returns setof timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_schedule queue_pg.schedules;
begin
  if coalesce(most not between 1 and 1000, true) then
    perform queue_pg.raise_invalid('most', 'must be from 1 to 1000');
  end if;
  v_schedule.name := 'preview';
  v_schedule.cron := cron;
  v_schedule.every := every;
  v_schedule.at := at;
  v_schedule.time_zone := coalesce(time_zone, 'UTC');
  v_schedule.starts_at := starts_at;
  v_schedule.ends_at := ends_at;
  v_schedule.missed := 'once';
  v_schedule.created_at := coalesce(after, queue_pg.now());
  perform queue_pg.check_schedule(v_schedule);
  v_schedule.next_fire_at := queue_pg.next_fire(v_schedule, v_schedule.created_at);
  perform queue_pg.check_fires(v_schedule);
  return query select unnest(queue_pg.next_fires(v_schedule, most));
end
$$;

comment on function queue_pg.preview_schedule is 'The moments at which a schedule would fire: select queue_pg.preview_schedule(''0 9 * * mon-fri'', time_zone => ''Europe/Berlin'').';

-- Checks a schedule and works out its next fire, however it was written. A change of when it fires, and the end of a
-- pause, start at the present: nothing is made up for.
create or replace function queue_pg.schedules_plan() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_moved boolean := tg_op = 'INSERT';
begin
  perform queue_pg.check_schedule(new);
  if tg_op = 'INSERT' then
    if (select count(*) from (select from queue_pg.schedules s where s.org = new.org limit 10000) s) = 10000 then
      perform queue_pg.raise_invalid('name', 'there are 10,000 schedules already, and that is the limit');
    end if;
  else
    v_moved := (old.cron, old.every, old.at, old.time_zone, old.starts_at, old.ends_at)
      is distinct from (new.cron, new.every, new.at, new.time_zone, new.starts_at, new.ends_at);
  end if;
  if new.paused then
    new.next_fire_at := null;
  elsif tg_op = 'UPDATE' and not v_moved and not old.paused then
    return new;
  elsif tg_op = 'UPDATE' or new.next_fire_at is null then
    -- One moment that has just passed is missed, not absent.
    new.next_fire_at := case when v_moved and new.at is not null then queue_pg.next_fire(new, '-infinity')
      else queue_pg.next_fire(new, v_now) end;
  end if;
  if v_moved then
    new.error := null;
    perform queue_pg.check_fires(new);
  end if;
  if new.next_fire_at is not null then
    perform queue_pg.wake_due(new.next_fire_at);
  end if;
  return new;
end
$$;

create or replace trigger schedules_plan
  before insert or update of org, name, cron, every, at, time_zone, starts_at, ends_at, jitter, missed, paused, payload
  on queue_pg.schedules for each row execute function queue_pg.schedules_plan();

-- --- firing ----------------------------------------------------------------------------------------------------------

-- The latest fires, at most `most`, from `start`, which is one, up to `until`.
create or replace function queue_pg.latest_fires(
  schedule queue_pg.schedules, start timestamptz, until timestamptz, most integer) returns timestamptz[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seconds numeric := extract(epoch from schedule.every);
  v_count numeric;
  v_width interval := '1 hour';
  v_from timestamptz;
  v_fire timestamptz;
  v_fires timestamptz[];
begin
  if schedule.every is not null then
    -- Counted and not walked through: a second's interval has 31 million fires a year.
    v_count := floor(extract(epoch from least(until, schedule.ends_at) - start) / v_seconds);
    return array(
      select start + n * v_seconds * interval '1 second'
      from generate_series(greatest(v_count - most + 1, 0), v_count) n order by n);
  end if;
  -- Cron can only be followed forwards: from four times as far back each time, until there are enough.
  loop
    v_from := greatest(start, until - v_width);
    v_fires := case when v_from = start then array[start] else '{}' end;
    v_fire := queue_pg.next_fire(schedule, v_from);
    while v_fire <= until loop
      v_fires := v_fires || v_fire;
      v_fire := queue_pg.next_fire(schedule, v_fire);
    end loop;
    exit when v_from = start or cardinality(v_fires) >= most;
    v_width := v_width * 4;
  end loop;
  return v_fires[greatest(cardinality(v_fires) - most + 1, 1):];
end
$$;

comment on function queue_pg.latest_fires is 'The latest fires of a schedule up to a moment, at most so many.';

-- Makes the job of one fire.
create or replace function queue_pg.submit_fire(schedule queue_pg.schedules, fire_at timestamptz, delay interval)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fire_at text := to_char(fire_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS')
    || case when extract(microseconds from fire_at)::integer % 1000000 <> 0 then to_char(fire_at, '.US') else '' end || 'Z';
  v_payload text := schedule.payload::text;
  v_name text := to_json(schedule.name)::text;
begin
  if v_payload like '%{{%' then
    v_name := substr(v_name, 2, length(v_name) - 2);
    v_payload := replace(replace(v_payload, '{{ schedule.fire_at }}', v_fire_at), '{{schedule.fire_at}}', v_fire_at);
    v_payload := replace(replace(v_payload, '{{ schedule.name }}', v_name), '{{schedule.name}}', v_name);
  end if;
  return queue_pg.submit(
    schedule.kind, v_payload::jsonb, queue => schedule.queue, priority => schedule.priority, delay => delay,
    max_attempts => schedule.max_attempts, timeout => schedule.timeout, tags => schedule.tags,
    metadata => schedule.metadata
      || jsonb_build_object('schedule', jsonb_build_object('name', schedule.name, 'fire_at', v_fire_at)),
    org => schedule.org, limit_key => schedule.limit_key, cost => schedule.cost);
end
$$;

comment on function queue_pg.submit_fire is 'Makes the job of one fire of a schedule.';

-- Makes the jobs of one schedule that is due, and returns how many. The caller has its row locked. Of the fires that are
-- due only the newest can be on time; the others were missed, and so was that one after a minute.
create or replace function queue_pg.fire_schedule(schedule queue_pg.schedules) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_next timestamptz;
  v_fires timestamptz[];
  v_fire timestamptz;
  v_job_id uuid;
  v_last_fire_at timestamptz;
  v_count integer := 0;
begin
  v_fires := array[schedule.next_fire_at];
  v_next := queue_pg.next_fire(schedule, schedule.next_fire_at);
  if v_next <= v_now then
    v_fires := queue_pg.latest_fires(
      schedule, schedule.next_fire_at, v_now, case schedule.missed when 'all' then 1000 else 1 end);
    v_next := queue_pg.next_fire(schedule, v_now);
  end if;
  if schedule.missed = 'skip' and v_fires[1] < v_now - interval '1 minute' then
    v_fires := '{}';
  end if;
  foreach v_fire in array v_fires loop
    insert into queue_pg.schedule_fires (schedule_id, fire_at) values (schedule.id, v_fire) on conflict do nothing;
    if found then
      v_job_id := queue_pg.submit_fire(schedule, v_fire, random() * schedule.jitter);
      update queue_pg.schedule_fires f set job_id = v_job_id where f.schedule_id = schedule.id and f.fire_at = v_fire;
      v_last_fire_at := v_fire;
      v_count := v_count + 1;
    end if;
  end loop;
  update queue_pg.schedules s
  set next_fire_at = v_next,
    last_fire_at = greatest(s.last_fire_at, v_last_fire_at),
    last_job_id = coalesce(v_job_id, s.last_job_id),
    error = case when v_count = 0 then s.error end
  where s.id = schedule.id;
  delete from queue_pg.schedule_fires f
  where f.schedule_id = schedule.id and f.fire_at < schedule.next_fire_at - interval '7 days';
  return v_count;
end
$$;

comment on function queue_pg.fire_schedule is 'Makes the jobs of one schedule that is due.';

-- Makes the jobs of schedules that are due, and ends when it has made `max_jobs`, so that its transaction is short;
-- returns how many. `since` as for the steps of maintain().
-- A fire that cannot make its job is lost, and says why in its schedule's `error`; the others go on. What would pass by
-- itself, a lock or a full disk, ends the step instead, and the next one tries again.
create or replace function queue_pg.fire_schedules(max_jobs integer default 200, since timestamptz default null)
returns integer
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
  v_ids uuid[];
  v_id uuid;
  v_schedule queue_pg.schedules;
  v_count integer := 0;
begin
  -- Ids and not rows, whose payloads could fill the memory.
  select array_agg(d.id order by d.next_fire_at) into v_ids
  from (
    select s.id, s.next_fire_at from queue_pg.schedules s
    where s.next_fire_at <= v_now and s.next_fire_at > v_floor
    order by s.next_fire_at
    limit max_jobs
    for update skip locked) d;
  if v_ids is null then
    return 0;
  end if;
  begin
    foreach v_id in array v_ids loop
      exit when v_count >= max_jobs;
      select s.* into v_schedule from queue_pg.schedules s where s.id = v_id;
      v_count := v_count + queue_pg.fire_schedule(v_schedule);
    end loop;
  exception
    when transaction_rollback or insufficient_resources or operator_intervention or object_not_in_prerequisite_state then
      raise;
    when others then
      -- Again, one by one. Not at first: many subtransactions in one transaction slow down everybody's snapshots.
      v_count := 0;
      foreach v_id in array v_ids loop
        exit when v_count >= max_jobs;
        select s.* into v_schedule from queue_pg.schedules s where s.id = v_id;
        begin
          v_count := v_count + queue_pg.fire_schedule(v_schedule);
        exception
          when transaction_rollback or insufficient_resources or operator_intervention
            or object_not_in_prerequisite_state then
            raise;
          when others then
            perform queue_pg.note_lost_fire(v_schedule, sqlstate, sqlerrm);
        end;
      end loop;
  end;
  return v_count;
end
$$;

comment on function queue_pg.fire_schedules is 'Makes the jobs of schedules that are due; returns how many.';

create or replace function queue_pg.note_lost_fire(schedule queue_pg.schedules, code text, message text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_next timestamptz;
begin
  raise warning 'queue_pg: schedule % made no job: %', schedule.name, message;
  begin
    v_next := queue_pg.next_fire(schedule, queue_pg.now());
  exception when others then
    -- Such as a zone that the server no longer has. It stands still until somebody changes it.
    v_next := null;
  end;
  update queue_pg.schedules s
  set next_fire_at = v_next,
    error = jsonb_build_object('code', code, 'message', left(message, 2000), 'fire_at', schedule.next_fire_at)
  where s.id = schedule.id;
end
$$;

-- --- what people do ------------------------------------------------------------------------------------------------------

create or replace function queue_pg.raise_no_schedule(name text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP020', message = format('no schedule %s', name),
    detail = jsonb_build_object('name', name)::text;
end
$$;

-- Makes a schedule, or changes the one of that name; one that is as it is told to be stays untouched.
-- Raises QP005, and with `create_only` QP021 when there is one of that name.
create or replace function queue_pg.schedule(
  name text, kind text, payload jsonb default '{}',
  cron text default null, every interval default null, at timestamptz default null, time_zone text default 'UTC',
  starts_at timestamptz default null, ends_at timestamptz default null, jitter interval default '0',
  missed text default 'once', paused boolean default null,
  queue text default 'default', priority integer default 0, max_attempts integer default null,
  timeout interval default null, tags text[] default '{}', metadata jsonb default '{}',
  org text default 'default', create_only boolean default false, origin text default 'user',
  limit_key text default null, cost integer default 1,
  out id uuid, out created boolean, out next_fire_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_org text := coalesce(schedule.org, 'default');
  v_timeout interval := queue_pg.plain_interval(schedule.timeout);
begin
  loop
    select s.id, false, s.next_fire_at into schedule.id, schedule.created, schedule.next_fire_at
    from queue_pg.schedules s where s.org = v_org and s.name = schedule.name for update;
    if found and schedule.create_only then
      raise exception using errcode = 'QP021', message = format('there is a schedule %s already', schedule.name),
        detail = jsonb_build_object('name', schedule.name)::text;
    elsif found then
      update queue_pg.schedules s
      set kind = schedule.kind, payload = coalesce(schedule.payload, '{}'), cron = schedule.cron, every = schedule.every,
        at = schedule.at, time_zone = coalesce(schedule.time_zone, 'UTC'), starts_at = schedule.starts_at,
        ends_at = schedule.ends_at, jitter = coalesce(schedule.jitter, '0'), missed = coalesce(schedule.missed, 'once'),
        paused = coalesce(schedule.paused, s.paused), queue = coalesce(schedule.queue, 'default'),
        priority = coalesce(schedule.priority, 0), max_attempts = schedule.max_attempts, timeout = v_timeout,
        tags = coalesce(schedule.tags, '{}'), metadata = coalesce(schedule.metadata, '{}'), origin = schedule.origin,
        limit_key = schedule.limit_key, cost = coalesce(schedule.cost, 1)
      where s.id = schedule.id and (
        s.kind::text, s.payload::jsonb, s.cron, s.every, s.at, s.time_zone, s.starts_at, s.ends_at, s.jitter, s.missed,
        s.paused, s.queue::text, s.priority::integer, s.max_attempts::integer, s.timeout::interval, s.tags::text[],
        s.metadata::jsonb, s.origin, s.limit_key::text, s.cost::integer)
      is distinct from (
        schedule.kind, coalesce(schedule.payload, '{}'), schedule.cron, schedule.every, schedule.at,
        coalesce(schedule.time_zone, 'UTC'), schedule.starts_at, schedule.ends_at, coalesce(schedule.jitter, '0'),
        coalesce(schedule.missed, 'once'), coalesce(schedule.paused, s.paused), coalesce(schedule.queue, 'default'),
        coalesce(schedule.priority, 0), schedule.max_attempts, v_timeout, coalesce(schedule.tags, '{}'),
        coalesce(schedule.metadata, '{}'), schedule.origin, schedule.limit_key, coalesce(schedule.cost, 1))
      returning s.next_fire_at into schedule.next_fire_at;
      if not found then
        select s.next_fire_at into schedule.next_fire_at from queue_pg.schedules s where s.id = schedule.id;
      end if;
      return;
    end if;
    insert into queue_pg.schedules as s (
      org, name, kind, payload, cron, every, at, time_zone, starts_at, ends_at, jitter, missed, paused, queue, priority,
      max_attempts, timeout, tags, metadata, origin, limit_key, cost)
    values (
      v_org, schedule.name, schedule.kind, coalesce(schedule.payload, '{}'), schedule.cron,
      schedule.every, schedule.at, coalesce(schedule.time_zone, 'UTC'), schedule.starts_at, schedule.ends_at,
      coalesce(schedule.jitter, '0'), coalesce(schedule.missed, 'once'), coalesce(schedule.paused, false),
      coalesce(schedule.queue, 'default'), coalesce(schedule.priority, 0), schedule.max_attempts, v_timeout,
      coalesce(schedule.tags, '{}'), coalesce(schedule.metadata, '{}'), schedule.origin, schedule.limit_key,
      coalesce(schedule.cost, 1))
    on conflict on constraint schedules_name do nothing
    returning s.id, true, s.next_fire_at into schedule.id, schedule.created, schedule.next_fire_at;
    if found then
      return;
    end if;
    -- Somebody else has made it between the two looks.
  end loop;
end
$$;

comment on function queue_pg.schedule is
  'Makes or changes a schedule: select * from queue_pg.schedule(''report'', ''report'', cron => ''0 9 * * mon-fri'', time_zone => ''Europe/Berlin'').';

-- What workers call for a task with cron= or every=. A schedule that people have made or changed is theirs: false, and it
-- stays as it is. A pause stays, too.
create or replace function queue_pg.register_schedule(
  kind text, cron text, every interval, time_zone text, missed text, queue text, priority integer,
  org text default 'default', limit_key text default null, cost integer default 1) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from queue_pg.schedules s
    where s.org = coalesce(register_schedule.org, 'default') and s.name = register_schedule.kind and s.origin = 'user') then
    return false;
  end if;
  perform queue_pg.schedule(
    register_schedule.kind, register_schedule.kind, cron => register_schedule.cron, every => register_schedule.every,
    time_zone => register_schedule.time_zone, missed => register_schedule.missed, queue => register_schedule.queue,
    priority => register_schedule.priority, org => register_schedule.org, origin => 'code',
    limit_key => register_schedule.limit_key, cost => register_schedule.cost);
  return true;
end
$$;

comment on function queue_pg.register_schedule is 'Makes or changes the schedule of a task, unless people have made it theirs.';

create or replace function queue_pg.unschedule(name text, org text default 'default') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from queue_pg.schedules s where s.org = unschedule.org and s.name = unschedule.name;
  if not found then
    perform queue_pg.raise_no_schedule(unschedule.name);
  end if;
end
$$;

comment on function queue_pg.unschedule is 'Removes a schedule; jobs it has made stay.';

create or replace function queue_pg.pause_schedule(name text, org text default 'default') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update queue_pg.schedules s set paused = true where s.org = pause_schedule.org and s.name = pause_schedule.name;
  if not found then
    perform queue_pg.raise_no_schedule(pause_schedule.name);
  end if;
end
$$;

comment on function queue_pg.pause_schedule is 'Stops a schedule until it is resumed.';

create or replace function queue_pg.resume_schedule(name text, org text default 'default') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update queue_pg.schedules s set paused = false where s.org = resume_schedule.org and s.name = resume_schedule.name;
  if not found then
    perform queue_pg.raise_no_schedule(resume_schedule.name);
  end if;
end
$$;

comment on function queue_pg.resume_schedule is 'Lets a paused schedule fire again, from now on; fires during the pause are not made up for.';

create or replace function queue_pg.run_schedule_now(name text, org text default 'default') returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_schedule queue_pg.schedules;
  v_job_id uuid;
begin
  select s.* into v_schedule from queue_pg.schedules s
  where s.org = run_schedule_now.org and s.name = run_schedule_now.name for update;
  if not found then
    perform queue_pg.raise_no_schedule(run_schedule_now.name);
  end if;
  v_job_id := queue_pg.submit_fire(v_schedule, queue_pg.now(), '0');
  update queue_pg.schedules s set last_job_id = v_job_id where s.id = v_schedule.id;
  return v_job_id;
end
$$;

comment on function queue_pg.run_schedule_now is 'Makes an extra job of a schedule at once, paused or not; its fires stay as they are.';
