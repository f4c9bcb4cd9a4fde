-- Jobs that share the work of others: the same kind with the same payload, of the same tenant, is done once.
--
-- Whoever submits with `cache` always gets a job of its own, with its own id, metadata, batch, retention and end. It either does
-- the work itself, or is `waiting` for the job that does, or ends at once with a copy of the result of one that has. A row of
-- queue_pg.cache_entries for each key says which job does the work (`job_id`) and which has done it last (`answer_id`).
--
-- A job of the cache that is planned (tasks.sql) is `waiting` too, for its subtasks, while it does the work: of those that wait
-- for others' work parents_left is null.
--
-- A failure is nobody's answer: when the job that does the work ends otherwise than completed, be it cancelled by its owner,
-- the next of those that wait does it, with its own attempts, timeout and deadline. So nobody loses work by sharing.
--
-- Two locks of an entry keep those who begin to wait and the end of the job from missing each other. Who begins to wait
-- holds it FOR KEY SHARE until its transaction ends; who settles the end has it FOR UPDATE. The end of a job never waits for that:
-- an entry that is locked then is noted in queue_pg.unsettled_cache, and maintenance settles it. The rows decide what is to be
-- done, so settling twice does no harm.

-- What identical work has in common. The text of a jsonb is canonical: the order of keys and white space do not matter; numbers
-- are as they are written, so 1 and 1.0 are two. The array keeps the parts apart.
create or replace function queue_pg.cache_key(org text, kind text, payload jsonb, version text default null) returns bytea
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select sha256(convert_to(jsonb_build_array(org, kind, version, payload)::text, 'UTF8')) $$;

comment on function queue_pg.cache_key is 'SHA-256 of organisation, kind, version and payload: jobs that have the same share their work.';

-- Decides what becomes of a job with this key that is about to be stored, and enters it:
--   run     nobody does the work: this job does
--   wait    another live job does: this one waits for it
--   answer  it is done: `answer_id`, kept until `answer_until`, has the result
-- `max_age` null: however old. `due`: the job may start now; then it goes before one that has not started, when that one
-- is put off, in a paused queue, or has a lower priority, and that one waits instead. `own_ids` are jobs that the same
-- call is about to store. Waits for open transactions that enter the same key: only their outcome decides.
create or replace function queue_pg.enter_cache(
  key bytea, id uuid, org text, kind text, queue text, priority integer, due boolean, max_age interval, own_ids uuid[],
  out step text, out answer_id uuid, out answer_until timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  v_now timestamptz := queue_pg.now();
  v_entry queue_pg.cache_entries;
  v_overtakes boolean;
begin
  loop
    select c.* into v_entry from queue_pg.cache_entries c where c.cache_key = enter_cache.key;
    if not found then
      insert into queue_pg.cache_entries (cache_key, org, kind, job_id)
      values (enter_cache.key, enter_cache.org, enter_cache.kind, enter_cache.id)
      on conflict on constraint cache_entries_pkey do nothing;
      continue when not found;
      step := 'run';
      return;
    end if;

    if v_entry.answer_until > v_now and (max_age is null or v_entry.answered_at > v_now - max_age) and exists (
      -- By the end of its retention, too: so one partition is looked at.
      select from queue_pg.finished_jobs f
      where f.id between v_entry.answer_id and v_entry.answer_id and f.retain_until = v_entry.answer_until
        and f.state = 'completed' and f.result is not null
    ) then
      step := 'answer';
      answer_id := v_entry.answer_id;
      answer_until := v_entry.answer_until;
      return;
    end if;

    if v_entry.job_id is null then
      -- An answer that came while this waited for the row is looked at first.
      update queue_pg.cache_entries c set job_id = enter_cache.id
      where c.cache_key = enter_cache.key and c.job_id is null and c.answer_id is not distinct from v_entry.answer_id;
      continue when not found;
      step := 'run';
      return;
    elsif v_entry.job_id = enter_cache.id then
      -- A retry, of which nobody has settled the end.
      perform from queue_pg.cache_entries c
      where c.cache_key = enter_cache.key and c.job_id = enter_cache.id for no key update;
      continue when not found;
      step := 'run';
      return;
    end if;

    v_overtakes := due and exists (
      select from queue_pg.jobs j
      where j.id between v_entry.job_id and v_entry.job_id and j.state in ('queued', 'scheduled') and j.lease_token = 0 and (
        j.run_at > v_now or j.priority < enter_cache.priority or (
          exists (select from queue_pg.queues q
            where q.org = j.org and q.queue = j.queue and q.paused_until > v_now)
          and not exists (select from queue_pg.queues q
            where q.org = enter_cache.org and q.queue = enter_cache.queue and q.paused_until > v_now))));
    if v_overtakes then
      perform from queue_pg.cache_entries c
      where c.cache_key = enter_cache.key and c.job_id = v_entry.job_id for no key update;
      continue when not found;
      -- Whoever has it locked is about to start it.
      perform from queue_pg.jobs j
      where j.id between v_entry.job_id and v_entry.job_id and j.state in ('queued', 'scheduled') and j.lease_token = 0
      for update skip locked;
      if found then
        perform queue_pg.record_events(
          array[v_entry.job_id], array['overtaken'], array[jsonb_build_object('job_id', enter_cache.id)]);
        update queue_pg.jobs j set state = 'waiting' where j.id between v_entry.job_id and v_entry.job_id;
        update queue_pg.cache_entries c set job_id = enter_cache.id where c.cache_key = enter_cache.key;
        step := 'run';
        return;
      end if;
    else
      -- KEY SHARE, which whoever becomes the holder need not wait for: a row that has changed meanwhile stays locked, and
      -- several who then want to be the one that it names would each wait for the others.
      perform from queue_pg.cache_entries c
      where c.cache_key = enter_cache.key and c.job_id = v_entry.job_id for key share;
      continue when not found;
    end if;
    step := 'wait';
    if v_entry.job_id <> all (own_ids) and not exists (
      select from queue_pg.jobs j where j.id between v_entry.job_id and v_entry.job_id
    ) then
      -- Ended, and nobody has settled that yet.
      perform queue_pg.defer_cache(array[enter_cache.key]);
    end if;
    return;
  end loop;
end
$$;

-- Enters those of an array of jobs that ask for it, as submit_many() has it: `wanted` are the ids to be, `owners` those that
-- the unique keys name. Returns for each job its key and what becomes of it, null for the others.
create or replace function queue_pg.enter_caches(
  jobs jsonb, wanted uuid[], owners uuid[], out keys bytea[], out waits boolean[], out answer_ids uuid[],
  out answer_untils timestamptz[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_now timestamptz := queue_pg.now();
  v_job jsonb;
  v_row record;
  v_entered record;
begin
  keys := array_fill(null::bytea, array[cardinality(wanted)]);
  waits := array_fill(false, array[cardinality(wanted)]);
  answer_ids := array_fill(null::uuid, array[cardinality(wanted)]);
  answer_untils := array_fill(null::timestamptz, array[cardinality(wanted)]);
  for v_job in select e.value from jsonb_array_elements(jobs) e loop
    if jsonb_typeof(v_job -> 'cache') not in ('boolean', 'null') then
      perform queue_pg.raise_invalid('cache', 'must be true or false');
    elsif jsonb_typeof(v_job -> 'cache_for_seconds') not in ('number', 'null')
      or (v_job ->> 'cache_for_seconds')::numeric not between 0 and 3153600000 then
      perform queue_pg.raise_invalid('cache_for', 'must be from 0 to 100 years');
    elsif jsonb_typeof(v_job -> 'cache_version') not in ('string', 'null')
      or length(v_job ->> 'cache_version') not between 1 and 255 then
      perform queue_pg.raise_invalid('cache_version', 'must have 1 to 255 characters');
    elsif queue_pg.wants_cache(v_job) and (v_job ->> 'parents_left')::integer > 0 then
      perform queue_pg.raise_invalid('cache',
        'is not for a job that waits for others: what it is to do is not known before they have ended');
    end if;
  end loop;

  -- In the order of the keys, so that two submitters of the same work cannot deadlock.
  for v_row in
    select w.* from (
      select e.ordinality::integer as nr, coalesce(e.value ->> 'org', 'default') as org, e.value ->> 'kind' as kind,
        coalesce(e.value ->> 'queue', 'default') as queue, coalesce((e.value ->> 'priority')::integer, 0) as priority,
        coalesce((e.value ->> 'run_at')::timestamptz <= v_now, coalesce((e.value ->> 'delay_seconds')::float8, 0) <= 0) as due,
        (e.value ->> 'cache_for_seconds')::float8 * interval '1 second' as max_age,
        queue_pg.cache_key(
          coalesce(e.value ->> 'org', 'default'), e.value ->> 'kind',
          coalesce(nullif(e.value -> 'payload', 'null'), '{}'), e.value ->> 'cache_version') as key
      from jsonb_array_elements(jobs) with ordinality e
      where queue_pg.wants_cache(e.value) and owners[e.ordinality] = wanted[e.ordinality]) w
    order by w.key, w.nr
  loop
    v_entered := queue_pg.enter_cache(
      v_row.key, wanted[v_row.nr], v_row.org, v_row.kind, v_row.queue, v_row.priority, v_row.due, v_row.max_age, wanted);
    keys[v_row.nr] := v_row.key;
    waits[v_row.nr] := v_entered.step <> 'run';
    answer_ids[v_row.nr] := v_entered.answer_id;
    answer_untils[v_row.nr] := v_entered.answer_until;
  end loop;
end
$$;

-- Whether a job, as submit_many() takes it, asks for the cache. An age or a version says so too, unless `cache` is false.
create or replace function queue_pg.wants_cache(job jsonb) returns boolean
language sql immutable parallel safe
as $$
  select coalesce((nullif(job -> 'cache', 'null'))::boolean,
    job ->> 'cache_for_seconds' is not null or job ->> 'cache_version' is not null)
$$;

-- Ends jobs that were stored a moment ago with the results of others, which enter_cache() has found.
create or replace function queue_pg.answer_new(ids uuid[], keys bytea[], answer_ids uuid[], answer_untils timestamptz[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  v_most_jobs constant integer := 500;
  v_most_bytes constant bigint := 16777216;
  v_row record;
  v_ids uuid[] := '{}';
  v_results jsonb[] := '{}';
  v_bytes bigint := 0;
begin
  for v_row in
    select a.id, a.key, f.result
    from unnest(ids, keys, answer_ids, answer_untils) as a (id, key, answer_id, answer_until)
    left join queue_pg.finished_jobs f
      on f.id between a.answer_id and a.answer_id and f.retain_until = a.answer_until and f.state = 'completed'
    where a.answer_id is not null
  loop
    if v_row.result is null then
      -- Swept since; it waits, and somebody has to see to it.
      perform queue_pg.defer_cache(array[v_row.key]);
      continue;
    end if;
    v_ids := array_append(v_ids, v_row.id);
    v_results := array_append(v_results, v_row.result);
    v_bytes := v_bytes + octet_length(v_row.result::text);
    -- In bites: results may be large.
    if cardinality(v_ids) >= v_most_jobs or v_bytes >= v_most_bytes then
      perform queue_pg.retire(v_ids, null, v_results, null);
      v_ids := '{}';
      v_results := '{}';
      v_bytes := 0;
    end if;
  end loop;
  if v_ids <> '{}' then
    perform queue_pg.retire(v_ids, null, v_results, null);
  end if;
end
$$;

-- Leaves entries to maintenance.
create or replace function queue_pg.defer_cache(keys bytea[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into queue_pg.unsettled_cache (cache_key) select k from unnest(keys) k;
  perform queue_pg.wake_due(queue_pg.now());
end
$$;

-- Settles entries whose job may have ended: if it has completed, it is the answer from now on, and those that wait end
-- with its result; else the next of them does the work. At most `most_jobs` are ended; what is left, or locked by somebody, is
-- left to maintenance. Waits for nobody.
create or replace function queue_pg.settle_cache(keys bytea[], most_jobs integer) returns void
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
  v_most_bytes constant bigint := 16777216;
  v_now timestamptz := queue_pg.now();
  v_keys bytea[];
  v_skipped bytea[];
  v_left integer := most_jobs;
  v_entry queue_pg.cache_entries;
  v_answer record;
  v_answers boolean;
  v_unsettled boolean;
  v_ids uuid[];
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    -- Those that have begun to wait since the transaction's first look cannot be seen.
    perform queue_pg.defer_cache(keys);
    return;
  end if;
  select coalesce(array_agg(l.cache_key), '{}') into v_keys
  from (
    select c.cache_key from (select distinct u from unnest(keys) u) as k (key)
    join queue_pg.cache_entries c on c.cache_key between k.key and k.key
    for update of c skip locked) l;
  select array_agg(s.key) into v_skipped
  from (select unnest(keys) except select unnest(v_keys)) as s (key)
  where exists (select from queue_pg.cache_entries c where c.cache_key between s.key and s.key);
  if v_skipped is not null then
    perform queue_pg.defer_cache(v_skipped);
  end if;

  -- Statements after the one that locks: they see whatever was committed by those who held the lock before.
  -- LIMITs, here and below: what is looked for is looked up for each key, and never joined by reading all there is.
  with ended as materialized (
    select c.cache_key, f.id, f.finished_at, f.retain_until
    from unnest(v_keys) as k (key)
    join queue_pg.cache_entries c on c.cache_key between k.key and k.key
    left join lateral (
      select j.id from queue_pg.jobs j where j.id between c.job_id and c.job_id limit 1) live on true
    left join lateral (
      select f.id, f.finished_at, f.retain_until from queue_pg.finished_jobs f
      where f.id between c.job_id and c.job_id and f.state = 'completed' and f.retain_until > v_now limit 1) f on true
    where c.job_id is not null and live.id is null
  )
  update queue_pg.cache_entries c
  set job_id = null, answer_id = coalesce(e.id, c.answer_id),
    -- Not when the job ended: whoever came between that and our lock has found it at work, and waits for this answer.
    answered_at = case when e.id is null then c.answered_at else queue_pg.now() end,
    answer_until = coalesce(e.retain_until, c.answer_until)
  from ended e where c.cache_key between e.cache_key and e.cache_key;

  for v_entry in
    select c.* from unnest(v_keys) as k (key)
    join queue_pg.cache_entries c on c.cache_key between k.key and k.key
    cross join lateral (
      select w.id from queue_pg.jobs w
      where w.state = 'waiting' and w.cache_key = c.cache_key and w.parents_left is null limit 1) waiting
  loop
    -- Only what was done after a job had begun to wait is its answer: it may have found an older one too old.
    select f.result, coalesce(octet_length(f.result::text), 0) as bytes into v_answer from queue_pg.finished_jobs f
    where f.id between v_entry.answer_id and v_entry.answer_id and f.retain_until = v_entry.answer_until
      and f.state = 'completed' and f.retain_until > v_now;
    v_answers := found;
    if v_answers and v_left > 0 then
      with waiting as materialized (
        select w.id from queue_pg.jobs w
        where w.state = 'waiting' and w.cache_key = v_entry.cache_key and w.parents_left is null
          and w.created_at <= v_entry.answered_at
        order by w.cache_key, w.priority desc, w.run_at, w.id
        limit least(v_left, greatest(v_most_bytes / greatest(v_answer.bytes, 1), 1))
        for update skip locked
      ),
      marked as (
        update queue_pg.jobs j set cached_from = v_entry.answer_id from waiting w where j.id between w.id and w.id
        returning j.id
      )
      select array_agg(m.id) into v_ids from marked m;
      if v_ids is not null then
        v_left := v_left - cardinality(v_ids);
        perform queue_pg.retire(v_ids, null, array_fill(v_answer.result, array[cardinality(v_ids)]), null);
      end if;
    end if;

    v_unsettled := v_answers and exists (
      select from queue_pg.jobs w
      where w.state = 'waiting' and w.cache_key = v_entry.cache_key and w.parents_left is null
        and w.created_at <= v_entry.answered_at);
    if v_entry.job_id is null and not v_unsettled
      and queue_pg.pass_work(v_entry.cache_key, case when v_answers then v_entry.answered_at end) is null then
      v_unsettled := exists (
        select from queue_pg.jobs w
        where w.state = 'waiting' and w.cache_key = v_entry.cache_key and w.parents_left is null);
    end if;
    if v_unsettled then
      perform queue_pg.defer_cache(array[v_entry.cache_key]);
    end if;
  end loop;

  delete from queue_pg.cache_entries c
  using unnest(v_keys) as k (key) left join lateral (
    select w.id from queue_pg.jobs w
    where w.state = 'waiting' and w.cache_key = k.key and w.parents_left is null limit 1) waiting on true
  -- So written that the index of what may be forgotten is of no use for it.
  where c.cache_key between k.key and k.key and coalesce(c.job_id, c.answer_id) is null and waiting.id is null;
end
$$;

-- Has the next of the jobs that wait for an entry do its work, and returns it; null when there is none that nobody has
-- locked. Not one that the answer of `answered_at` is for. The caller has locked the entry.
create or replace function queue_pg.pass_work(key bytea, answered_at timestamptz) returns uuid
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
  v_now timestamptz := queue_pg.now();
  v_id uuid;
  v_job queue_pg.jobs;
begin
  select w.id into v_id from queue_pg.jobs w
  where w.state = 'waiting' and w.cache_key = pass_work.key and w.parents_left is null and w.run_at <= v_now
    and (w.created_at <= pass_work.answered_at) is not true
  order by w.cache_key, w.priority desc, w.run_at, w.id limit 1 for update skip locked;
  if v_id is null then
    -- All are put off.
    select w.id into v_id from queue_pg.jobs w
    where w.state = 'waiting' and w.cache_key = pass_work.key and w.parents_left is null
      and (w.created_at <= pass_work.answered_at) is not true
    order by w.run_at, w.id limit 1 for update skip locked;
  end if;
  if v_id is null then
    return null;
  end if;
  update queue_pg.cache_entries c set job_id = v_id where c.cache_key = pass_work.key;
  update queue_pg.jobs j
  set cached_from = null, promoted_at = case when j.run_at <= v_now then v_now end,
    state = case when j.run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state
  where j.id between v_id and v_id
  returning j.* into v_job;
  if v_job.state = 'scheduled' then
    perform queue_pg.wake_due(v_job.run_at);
    return v_id;
  end if;
  perform queue_pg.wake(v_job.queue);
  if v_job.followed then
    perform queue_pg.tell_followers(array[v_id]);
  end if;
  if queue_pg.is_observed() then
    perform queue_pg.tell_transition(
      v_id, v_job.org, v_job.queue, v_job.kind, 'promoted', greatest(v_job.last_event_seq, 1) + 1);
  end if;
  return v_id;
end
$$;

-- A step of maintenance: settles what could not be settled when a job ended; returns how many entries it looked at.
create or replace function queue_pg.settle_deferred_cache(max_jobs integer default 1000) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_keys bytea[];
begin
  with taken as (
    delete from queue_pg.unsettled_cache u
    where u.ctid = any (array(select t.ctid from queue_pg.unsettled_cache t limit max_jobs for update skip locked))
    returning u.cache_key
  )
  select array_agg(distinct t.cache_key) into v_keys from taken t;
  if v_keys is null then
    return 0;
  end if;
  perform queue_pg.settle_cache(v_keys, max_jobs);
  return cardinality(v_keys);
end
$$;

comment on function queue_pg.settle_deferred_cache is
  'Ends jobs that wait for work which is done, or has one of them do it, where that could not be done at once.';

-- Forgets answers, so that the next job does the work anew. What is being done goes on, and is an answer when it is done.
-- Returns how many it has forgotten. `kind` null: of all kinds.
create or replace function queue_pg.forget_answers(kind text default null, org text default 'default') returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
  -- In the order of the keys, as all who wait for locks of several.
  with held as materialized (
    select c.cache_key, c.job_id from queue_pg.cache_entries c
    where c.org = forget_answers.org and (forget_answers.kind is null or c.kind = forget_answers.kind)
      and c.answer_id is not null
    order by c.cache_key for update
  ),
  forgotten as (
    update queue_pg.cache_entries c set answer_id = null, answered_at = null, answer_until = null
    from held h where c.cache_key between h.cache_key and h.cache_key and h.job_id is not null
    returning 1
  ),
  removed as (
    delete from queue_pg.cache_entries c
    using held h
    where c.cache_key between h.cache_key and h.cache_key and h.job_id is null
      and not exists (
        select from queue_pg.jobs w where w.state = 'waiting' and w.cache_key = c.cache_key and w.parents_left is null)
    returning 1
  )
  select (select count(*) from forgotten) + (select count(*) from removed)
$$;

comment on function queue_pg.forget_answers is 'Forgets the answers of one kind, or all of an organisation: the next job does the work anew.';
