-- What happened to a job, as a numbered list: 1 is its submission, and there are no gaps.
--
-- The straight way of a job (submitted, promoted, started, completed) costs it no row: what these events say stands in the
-- job's own row, so they are derived from there when somebody reads. A row is stored when a transition leaves that way, or
-- when a handler says something; then those before it that were not stored yet (promoted, started) are stored with it, with
-- the numbers and the contents under which they were derived. So early and late readers see the same list, and nothing in it
-- ever changes. This needs one thing of whoever changes a job's state: a transition that ends an attempt otherwise than by
-- retire() as completed goes through record_events(), before it changes the row.

-- Events that are not a handler's to append: those that the queue records itself, or tells its readers.
create or replace function queue_pg.reserved_events() returns text[]
language sql immutable parallel safe
return array[
  'submitted', 'promoted', 'started', 'completed', 'failed', 'snoozed', 'suspended', 'planned', 'signalled', 'released',
  'cancelled', 'lease_lost', 'retried', 'reprioritized', 'expired', 'overtaken', 'truncated', 'forgotten', 'end'];

comment on function queue_pg.reserved_events() is 'Types of events that queue_pg.append_events() refuses.';

-- Records transitions, one for each entry; the caller holds the row locks, which makes the numbers gapless. A job that comes
-- several times gets its events in the order of the arrays.
create or replace function queue_pg.record_events(ids uuid[], types text[], data jsonb[]) returns void
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
  v_observed boolean := queue_pg.is_observed();
  v_followed uuid[];
begin
  with entry as materialized (
    select e.id, array_agg(e.type order by e.nr) as types, array_agg(coalesce(e.data, '{}') order by e.nr) as data,
      count(*)::integer as entries
    from unnest(ids, types, data) with ordinality as e (id, type, data, nr)
    group by e.id
  ),
  held as materialized (
    select j.id, j.ctid as place, j.org::text, j.queue::text, j.kind::text, j.attempt::integer, j.worker_id, j.claimed_at,
      j.promoted_at, j.followed, e.types, e.data, e.entries,
      -- Room at the end of the range, where a row made by hand may be.
      least(greatest(j.last_event_seq, 1), 1000000000 - e.entries - 2)::integer as before,
      (j.promoted_at is not null)::integer as promoted,
      (j.lease_token > 0 and j.logged_token is distinct from j.lease_token)::integer as started
    from entry e join queue_pg.jobs j on j.id between e.id and e.id
    for no key update of j
  ),
  counted as (
    update queue_pg.jobs j
    set last_event_seq = h.before + h.promoted + h.started + h.entries, promoted_at = null,
      logged_token = case when h.started = 1 then j.lease_token else j.logged_token end
    -- By its place: the lock keeps it there.
    from held h where j.ctid = h.place
  ),
  stored as (
    insert into queue_pg.job_events (job_id, seq, at, type, data)
    select h.id, h.before + 1, h.promoted_at, 'promoted', '{}' from held h where h.promoted = 1
    union all
    select h.id, h.before + h.promoted + 1, coalesce(h.claimed_at, v_now), 'started',
      queue_pg.attempt_data(h.attempt, h.worker_id)
    from held h where h.started = 1
    union all
    select h.id, h.before + h.promoted + h.started + u.nr::integer, v_now, u.type,
      queue_pg.attempt_data(h.attempt, h.worker_id) || jsonb_strip_nulls(u.data)
    from held h cross join lateral unnest(h.types, h.data) with ordinality as u (type, data, nr)
  )
  select array_agg(h.id) filter (where h.followed) into v_followed
  from held h
  cross join lateral (
    select count(queue_pg.tell_transition(
      h.id, h.org, h.queue, h.kind, u.type, h.before + h.promoted + h.started + u.nr::integer, h.attempt, h.worker_id,
      u.data -> 'error' ->> 'code')) filter (where v_observed)
    from unnest(h.types, h.data) with ordinality as u (type, data, nr)
  ) told;
  perform queue_pg.tell_followers(v_followed);
end
$$;

-- What `started` and `completed` say, derived or stored.
create or replace function queue_pg.attempt_data(attempt integer, worker_id text) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select jsonb_strip_nulls(jsonb_build_object('attempt', attempt, 'worker_id', worker_id)) $$;

-- Appends what handlers say (log, progress, chunk, types of their own), one event for each entry, to any number of jobs.
-- Fenced: an entry counts only while its (id, lease_token) is the current lease. Answers once for each job that the entries
-- name, those refused last, with the state they have now (null: unknown id); `last_seq` is the number of the job's newest
-- event, `appended` how many of such its handlers have appended in all, `followed` whether somebody reads them as they come.
-- Past settings.max_events a job gets one event truncated, and what else is appended is dropped.
create or replace function queue_pg.append_events(ids uuid[], lease_tokens bigint[], types text[], data jsonb[])
returns table (id uuid, accepted boolean, state text, last_seq integer, appended integer, followed boolean)
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
  v_max_events integer;
  v_type text;
  v_ids uuid[];
  v_last integer[];
  v_appended integer[];
  v_marks boolean[];
  v_followed uuid[];
begin
  if cardinality(ids) is distinct from cardinality(lease_tokens) or cardinality(ids) is distinct from cardinality(types)
    or cardinality(ids) is distinct from cardinality(data) then
    perform queue_pg.raise_invalid('types', 'one for each id, lease_token and data');
  end if;
  select t into v_type from unnest(types) t
  where t is null or t !~ '^[a-z][a-z0-9_.:-]{0,63}$' or t = any (queue_pg.reserved_events()) limit 1;
  if found then
    perform queue_pg.raise_invalid('type', case when v_type = any (queue_pg.reserved_events())
      then format('%s is an event that the queue records itself', v_type)
      else 'must have 1 to 64 characters: a-z, then a-z, 0-9 and _ . : -' end);
  end if;
  select s.max_events into v_max_events from queue_pg.settings s;

  with entry as materialized (
    select e.id, e.lease_token, array_agg(e.type order by e.nr) as types,
      array_agg(coalesce(e.data, '{}')::queue_pg.event_data::jsonb order by e.nr) as data, count(*)::integer as entries
    from unnest(ids, lease_tokens, types, data) with ordinality as e (id, lease_token, type, data, nr)
    group by e.id, e.lease_token
  ),
  held as materialized (
    select j.id, j.attempt::integer, j.worker_id, j.claimed_at, j.promoted_at, j.followed, e.types, e.data, e.entries,
      least(greatest(j.last_event_seq, 1), 900000000)::integer as before,
      greatest(least(coalesce(j.appended_events, 0), 20000000), 0) as appended,
      (j.promoted_at is not null)::integer as promoted,
      (j.logged_token is distinct from j.lease_token)::integer as started
    from entry e join queue_pg.jobs j on j.id between e.id and e.id
    -- "Running" is tested as in finish().
    where j.lease_expires_at is not null and j.lease_token = e.lease_token
    order by e.id
    for no key update of j
  ),
  room as (
    select h.*, greatest(least(h.entries, v_max_events - h.appended), 0) as kept,
      (h.entries > v_max_events - h.appended and h.appended <= v_max_events)::integer as cut
    from held h
  ),
  placed as materialized (
    select r.*, r.kept + r.cut > 0 as grows, r.before + r.promoted + r.started as base from room r
  ),
  counted as (
    update queue_pg.jobs j
    set last_event_seq = p.base + p.kept + p.cut, promoted_at = null, logged_token = j.lease_token,
      appended_events = p.appended + p.kept + p.cut
    from placed p where j.id between p.id and p.id and p.grows
  ),
  stored as (
    insert into queue_pg.job_events (job_id, seq, at, type, data)
    select p.id, p.before + 1, p.promoted_at, 'promoted', '{}' from placed p where p.grows and p.promoted = 1
    union all
    select p.id, p.base, coalesce(p.claimed_at, v_now), 'started', queue_pg.attempt_data(p.attempt, p.worker_id)
    from placed p where p.grows and p.started = 1
    union all
    select p.id, p.base + u.nr::integer, v_now, u.type, u.data
    from placed p cross join lateral unnest(p.types, p.data) with ordinality as u (type, data, nr)
    where u.nr <= p.kept
    union all
    select p.id, p.base + p.kept + 1, v_now, 'truncated', jsonb_build_object('max_events', v_max_events)
    from placed p where p.cut = 1
  )
  select array_agg(p.id), array_agg(case when p.grows then p.base + p.kept + p.cut else p.before end),
    array_agg(p.appended + p.kept + p.cut), array_agg(p.followed), array_agg(p.id) filter (where p.followed and p.grows)
  into v_ids, v_last, v_appended, v_marks, v_followed
  from placed p;
  perform queue_pg.tell_followers(v_followed);

  return query
  select u.id, true, 'running', u.last, u.appended, u.mark
  from unnest(v_ids, v_last, v_appended, v_marks) as u (id, last, appended, mark);
  return query
  select e.id, false, queue_pg.state_of(e.id), null::integer, null::integer, null::boolean
  from (select distinct i from unnest(ids) i where not i = any (coalesce(v_ids, '{}'))) as e (id);
end
$$;

comment on function queue_pg.append_events(uuid[], bigint[], text[], jsonb[]) is
  'Appends events of handlers to jobs, each fenced by (id, lease_token).';

-- One event, for psql and for workers in other languages. Returns the number of the job's newest event; a stale lease raises
-- QP003.
create or replace function queue_pg.append_event(id uuid, lease_token bigint, type text, data jsonb default '{}')
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_answer record;
begin
  select a.* into v_answer
  from queue_pg.append_events(array[append_event.id], array[append_event.lease_token], array[append_event.type],
    array[append_event.data]) a;
  if not v_answer.accepted then
    if v_answer.state is null then
      perform queue_pg.raise_not_found(append_event.id);
    end if;
    perform queue_pg.raise_lease_lost(append_event.id, v_answer.state);
  end if;
  return v_answer.last_seq;
end
$$;

comment on function queue_pg.append_event is
  'Appends one event of a running attempt: select queue_pg.append_event(id, lease_token, ''log'', ''{"line": "hello"}'').';

-- Reads the events of many jobs, of each those after a number, at most `max_events` and about `max_bytes` of data, in
-- order: one row for each, and one with a null `seq` for a job that has none. `position` is the job's place in `ids`, from 1. With them, what the job is: its state, the
-- number of its newest event (`last_seq`), and whether its events are announced (`followed`). An id that nobody knows has no
-- row. What retention has dropped is told by one event forgotten, in whose place and with whose number it was.
-- STABLE, so that rows and events are of one moment.
create or replace function queue_pg.read_events(
  ids uuid[], after integer[], max_events integer default 1000, max_bytes bigint default 1048576)
returns table (
  "position" integer, job_id uuid, org text, state text, followed boolean, last_seq integer, seq integer, at timestamptz, type text, data text)
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
  v_now timestamptz := queue_pg.now();
begin
  return query
  with asked as materialized (
    select a.nr::integer as nr, a.id, least(greatest(coalesce(a.after, 0), 0), 2000000000) as after
    from unnest(read_events.ids, read_events.after) with ordinality as a (id, after, nr)
  )
  select a.nr, n.id, n.org, n.state::text, n.followed, n.completed_seq, e.seq, e.at, e.type, e.data
  from asked a
  cross join lateral (
    select j.*,
      j.before + (j.promoted_at is not null)::integer as promoted_seq,
      j.before + (j.promoted_at is not null)::integer + j.started::integer as started_seq,
      j.before + (j.promoted_at is not null)::integer + j.started::integer + (j.state = 'completed')::integer
        as completed_seq
    from (
      select l.id, l.org::text, l.queue::text, l.kind::text, l.state, l.followed, l.created_at::timestamptz, l.promoted_at,
        l.claimed_at, null::timestamptz as finished_at, l.attempt::integer, l.worker_id,
        greatest(l.last_event_seq, 1)::integer as before,
        l.lease_token > 0 and l.logged_token is distinct from l.lease_token as started, null::uuid as cached_from
      from queue_pg.jobs l where l.id between a.id and a.id
      union all
      select f.id, f.org, f.queue, f.kind, f.state, false, f.created_at, f.promoted_at, f.started_at, f.finished_at, f.attempt,
        f.worker_id, greatest(f.last_event_seq, 1),
        f.lease_token > 0 and f.logged_token is distinct from f.lease_token, f.cached_from
      from queue_pg.finished_jobs f where f.id between a.id and a.id and f.retain_until > v_now
    ) j
  ) n
  left join lateral (
    select w.* from (
      select t.*, sum(octet_length(t.data)) over (order by t.seq rows between unbounded preceding and 1 preceding) as bytes
      from (
        select u.* from (
          -- Numbers up to this one are stored, or were.
          (
            select s.seq, s.at, s.type, s.data::text as data
            from queue_pg.job_events s where s.job_id = a.id and s.seq > a.after
            order by s.seq limit read_events.max_events
          )
          union all
          select g.to_seq, null, 'forgotten', jsonb_build_object('from_seq', greatest(a.after, 1) + 1, 'to_seq', g.to_seq)::text
          from (
            select coalesce(
              (select m.seq - 1 from queue_pg.job_events m where m.job_id = a.id and m.seq > a.after order by m.seq limit 1),
              n.before) as to_seq
            where n.before > greatest(a.after, 1) and not exists (
              select from queue_pg.job_events x where x.job_id = a.id and x.seq = greatest(a.after, 1) + 1)
          ) g
          union all
          select 1, n.created_at, 'submitted', jsonb_build_object('kind', n.kind, 'queue', n.queue)::text where a.after < 1
          union all
          select n.promoted_seq, n.promoted_at, 'promoted', '{}'
          where n.promoted_at is not null and n.promoted_seq > a.after
          union all
          select n.started_seq, n.claimed_at, 'started', queue_pg.attempt_data(n.attempt, n.worker_id)::text
          where n.started and n.started_seq > a.after
          union all
          select n.completed_seq, n.finished_at, 'completed', (queue_pg.attempt_data(n.attempt, n.worker_id)
            || case when n.cached_from is null then '{}' else jsonb_build_object('cached_from', n.cached_from) end)::text
          where n.state = 'completed' and n.completed_seq > a.after
        ) u
        order by u.seq limit read_events.max_events
      ) t
    ) w
    where coalesce(w.bytes, 0) < read_events.max_bytes
    order by w.seq
  ) e on true;
end
$$;

comment on function queue_pg.read_events is 'Events of many jobs, of each those after a number; for followers. People: queue_pg.events(id).';

-- All events of one job, for psql and other languages. No such job: no row.
create or replace function queue_pg.events(job_id uuid, after integer default 0)
returns table (seq integer, at timestamptz, type text, data jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select e.seq, e.at, e.type, e.data::jsonb
  from queue_pg.read_events(array[events.job_id], array[events.after], 2147483647, 9223372036854775807) e
  where e.seq is not null
  order by e.seq
$$;

comment on function queue_pg.events is 'What happened to a job so far, from its submission on: select * from queue_pg.events(id).';

-- The log lines of a job from a number on, of one stream or of all.
create or replace function queue_pg.logs(
  job_id uuid, from_seq integer default 1, max_lines integer default 1000, only_stream text default null)
returns table (seq integer, at timestamptz, stream text, line text, data jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  return query
  select e.seq, e.at, e.data ->> 'stream', e.data ->> 'line', e.data - array['stream', 'line']
  from queue_pg.job_events e
  where e.job_id = logs.job_id and e.seq >= logs.from_seq and e.type = 'log'
    and (only_stream is null or e.data ->> 'stream' = only_stream)
  order by e.seq limit logs.max_lines;
end
$$;

comment on function queue_pg.logs is 'Log lines of a job: select * from queue_pg.logs(id, only_stream => ''stderr'').';
