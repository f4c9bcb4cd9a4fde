-- Who hears of events as they come. NOTIFY is a hint and the rows are the truth, as everywhere; jobs that nobody reads along
-- with send none, and while nobody observes, transitions send none.
--
-- A follower reads the events of certain jobs. It marks their rows, under the row's lock: either whoever stores an event
-- sees the mark, or the follower's next look sees the event. What it hears is the id of a job, on queue_pg_events.
--
-- An observer hears of the transitions of all jobs, with what they are, on queue_pg_transitions: there is no list in which
-- it could read them. It asks by bit 61 of the sequence queue_pg.armed, which claims, outcomes and INSERTs read anyway; its
-- row in queue_pg.observers lets the bit be cleared when it has vanished.

-- Marks live jobs so that their events send NOTIFY queue_pg_events with the id.
create or replace function queue_pg.follow(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queues text[];
begin
  with marked as (
    update queue_pg.jobs j set followed = true
    from (
      select l.id from queue_pg.jobs l where l.id = any (follow.ids) and not l.followed order by l.id for no key update
    ) as locked
    where j.id between locked.id and locked.id
    returning j.state, j.queue
  )
  select array_agg(distinct m.queue::text) filter (where m.state = 'queued') into v_queues from marked m;
  -- A claim that came while the row was locked has skipped it, and its worker would not look again before its poll.
  perform queue_pg.send_hint('queue_pg_wake', q) from unnest(v_queues) q, queue_pg.settings s where s.notify;
end
$$;

comment on function queue_pg.follow(uuid[]) is 'Makes the events of these live jobs send NOTIFY queue_pg_events with the id.';

create or replace function queue_pg.tell_followers(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if ids is not null then
    perform queue_pg.send_hint('queue_pg_events', i::text) from unnest(ids) i, queue_pg.settings s where s.notify;
  end if;
end
$$;

create or replace function queue_pg.is_observed() returns boolean
language sql volatile parallel safe
return pg_sequence_last_value('queue_pg.armed') & 2305843009213693952 <> 0;

comment on function queue_pg.is_observed() is 'Whether somebody hears of every transition.';

-- Sends one transition to the observers and returns the id. What may be long is cut: a payload of 8,000 bytes would be
-- refused, and the transition with it.
create or replace function queue_pg.tell_transition(
  id uuid, org text, queue text, kind text, type text, seq integer, attempt integer default null,
  worker_id text default null, code text default null) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform queue_pg.send_hint('queue_pg_transitions', jsonb_strip_nulls(jsonb_build_object(
    'id', id, 'org', org, 'queue', queue, 'kind', kind, 'type', type, 'seq', seq, 'at', queue_pg.now(), 'attempt', attempt,
    'worker_id', left(worker_id, 200), 'code', left(code, 100)))::text);
  return id;
end
$$;

-- For a claim: tells those who follow the job and those who observe all, and returns the id.
create or replace function queue_pg.tell_started(
  id uuid, org text, queue text, kind text, seq integer, attempt integer, worker_id text, followed boolean) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if followed then
    perform queue_pg.tell_followers(array[id]);
  end if;
  if queue_pg.is_observed() then
    perform queue_pg.tell_transition(id, org, queue, kind, 'started', seq, attempt, worker_id);
  end if;
  return id;
end
$$;

-- Has every transition send NOTIFY queue_pg_transitions, for 30 seconds from now. False: it does not, because
-- settings.notify is off, or somebody was changing the bits in this moment; try again. The lock, which unobserve() takes
-- too, ends after the row can be seen.
create or replace function queue_pg.observe(id text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(7310579610401947748);
  insert into queue_pg.observers as o (id, until) values (observe.id, queue_pg.now() + interval '30 seconds')
  on conflict on constraint observers_pkey do update set until = excluded.until;
  perform queue_pg.change_armed(2305843009213693952, 0) from queue_pg.settings s where s.notify;
  return queue_pg.is_observed();
end
$$;

comment on function queue_pg.observe(text) is 'Asks for a NOTIFY queue_pg_transitions of every transition; renew it within 30 s.';

create or replace function queue_pg.unobserve(id text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(7310579610401947748);
  delete from queue_pg.observers o where o.id = unobserve.id or o.until < queue_pg.now();
  if not exists (select from queue_pg.observers) then
    perform queue_pg.change_armed(0, 2305843009213693952);
  end if;
end
$$;

comment on function queue_pg.unobserve(text) is 'Takes queue_pg.observe() back.';
