-- Submission. A plain INSERT does the same for everything but the reuse of a unique key; arrive.sql has what the table's
-- trigger adds.

-- Stores many jobs, all or none, and returns one row for each in the order given (positions start at 1).
-- `jobs` is an array of objects with the keys kind, payload, queue, priority, run_at, delay_seconds, max_attempts,
-- timeout_seconds, expires_at, unique_key, tags, metadata, org, traceparent, batch_id, limit_key, cost, cache,
-- cache_for_seconds, cache_version; null or absent means the default. For the last three see caching.sql: such a job may be waiting
-- or completed when this returns.
-- With `key` and `depends_on` in any of them they are a graph: see graph.sql, which adds parents_left and awaited.
-- `created` is false where the unique key already names the job. Raises QP004 and QP005.
create or replace function queue_pg.submit_many(jobs jsonb) returns table ("position" integer, id uuid, created boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_element jsonb;
  v_row record;
  v_wanted uuid[];
  v_owners uuid[];
  -- Null: none asks for the cache.
  v_cache record;
  v_cached boolean := false;
  v_cache_keys bytea[];
  v_cache_waits boolean[];
  v_answer_ids uuid[];
begin
  if jsonb_typeof(submit_many.jobs) is distinct from 'array' then
    perform queue_pg.raise_invalid('jobs', 'must be a JSON array of objects');
  end if;
  select e.value into v_element from jsonb_array_elements(submit_many.jobs) e
  where jsonb_typeof(e.value) <> 'object' or nullif(e.value ->> 'kind', '') is null
    or e.value ?| '{depends_on,key,cache,cache_for_seconds,cache_version}' limit 1;
  if found and nullif(v_element ->> 'kind', '') is not null and not v_element ?| '{depends_on,key}' then
    v_cached := true;
    select e.value into v_element from jsonb_array_elements(submit_many.jobs) e
    where jsonb_typeof(e.value) <> 'object' or nullif(e.value ->> 'kind', '') is null
      or e.value ?| '{depends_on,key}' limit 1;
  end if;
  if found and nullif(v_element ->> 'kind', '') is not null then
    return query select g.* from queue_pg.submit_graph(submit_many.jobs) g;
    return;
  elsif found then
    perform queue_pg.raise_invalid('kind', 'every job needs one');
  end if;

  -- One id a microsecond keeps the order of the array in the ids, which break ties of run_at.
  select array_agg(queue_pg.uuid7_at(v_now + n * interval '1 microsecond') order by n) into v_wanted
  from generate_series(1, jsonb_array_length(submit_many.jobs)) n;
  v_owners := v_wanted;

  -- Keys are taken in their own order, so that two submitters with the same keys cannot deadlock. Within one array the
  -- first job with a key has it, and the others are compared with that one.
  for v_row in
    with keyed as (
      select e.ordinality as nr, e.value ->> 'kind' as kind, e.value ->> 'unique_key' as unique_key,
        coalesce(e.value ->> 'org', 'default') as org, coalesce(e.value ->> 'queue', 'default') as queue,
        coalesce(nullif(e.value -> 'payload', 'null'), '{}') as payload
      from jsonb_array_elements(submit_many.jobs) with ordinality e
      where e.value ->> 'unique_key' is not null
    )
    select k.*, first_value(k.nr) over same_key as first_nr,
      (k.kind, k.queue, k.payload) = (
        first_value(k.kind) over same_key, first_value(k.queue) over same_key, first_value(k.payload) over same_key
      ) as same_body
    from keyed k
    window same_key as (partition by k.org, k.unique_key order by k.nr)
    order by k.org, k.unique_key, k.nr
  loop
    if length(v_row.unique_key) not between 1 and 255 then
      perform queue_pg.raise_invalid('unique_key', 'must have 1 to 255 characters');
    end if;
    if v_row.nr = v_row.first_nr then
      v_owners[v_row.nr] := queue_pg.take_unique_key(
        v_row.org, v_row.unique_key, v_wanted[v_row.nr], v_row.queue, v_row.kind, v_row.payload);
    elsif v_row.same_body then
      v_owners[v_row.nr] := v_owners[v_row.first_nr];
    else
      perform queue_pg.raise_key_conflict(v_row.unique_key, v_owners[v_row.first_nr]);
    end if;
  end loop;

  if v_cached then
    v_cache := queue_pg.enter_caches(submit_many.jobs, v_wanted, v_owners);
    v_cache_keys := v_cache.keys;
    v_cache_waits := v_cache.waits;
    v_answer_ids := v_cache.answer_ids;
  end if;

  insert into queue_pg.jobs (
    id, run_at, created_at, state, max_attempts, priority, org, queue, kind, payload, timeout, expires_at, unique_key,
    tags, metadata, traceparent, batch_id, parents_left, awaited, limit_key, cost, cache_key, cached_from)
  select
    v_wanted[n.nr],
    d.run_at,
    v_now,
    case when r.parents_left > 0 or v_cache_waits[n.nr] then 'waiting' when d.run_at > v_now then 'scheduled' else 'queued' end
      ::queue_pg.job_state,
    r.max_attempts,
    coalesce(r.priority, 0),
    coalesce(r.org, 'default'),
    coalesce(r.queue, 'default'),
    r.kind,
    coalesce(nullif(r.payload, 'null'), '{}'),
    r.timeout_seconds * interval '1 second',
    r.expires_at,
    r.unique_key,
    coalesce(r.tags, '{}'),
    coalesce(nullif(r.metadata, 'null'), '{}'),
    r.traceparent,
    r.batch_id,
    r.parents_left,
    coalesce(r.awaited, false),
    r.limit_key,
    coalesce(r.cost, 1),
    v_cache_keys[n.nr],
    v_answer_ids[n.nr]
  from rows from (
    jsonb_to_recordset(submit_many.jobs) as (
      kind text, payload jsonb, queue text, priority smallint, run_at timestamptz, delay_seconds double precision,
      max_attempts integer, timeout_seconds double precision, expires_at timestamptz, unique_key text, tags text[],
      metadata jsonb, org text, traceparent text, batch_id uuid, parents_left integer, awaited boolean,
      limit_key text, cost integer)
  ) with ordinality as r (
    kind, payload, queue, priority, run_at, delay_seconds, max_attempts, timeout_seconds, expires_at, unique_key, tags,
    metadata, org, traceparent, batch_id, parents_left, awaited, limit_key, cost, nr)
  cross join lateral (select r.nr) n
  cross join lateral (
    select coalesce(r.run_at, v_now + coalesce(r.delay_seconds, 0) * interval '1 second') as run_at) d
  where v_owners[n.nr] = v_wanted[n.nr];
  if v_cached then
    perform queue_pg.answer_new(v_wanted, v_cache_keys, v_answer_ids, v_cache.answer_untils);
  end if;

  return query
  select o.nr::integer, o.owner, o.owner = v_wanted[o.nr] from unnest(v_owners) with ordinality as o (owner, nr);
end
$$;

comment on function queue_pg.submit_many(jsonb) is
  'Stores an array of job objects, all or none; returns (position, id, created) for each, in order.';

-- Stores one job and returns its id; with a unique key that already names the same work, the id of that job.
-- `depends_on` is an array of parents, as in graph.sql: '["<id>", {"job": "<id>", "name": "fetch"}]'.
-- `cache`: the job may share the work of an identical one, or be answered by one that has completed, at most `cache_for` ago.
-- `cache_version` is part of what makes them identical. Either of the two asks for it, too, unless `cache` is false.
create or replace function queue_pg.submit(
  kind text,
  payload jsonb default '{}',
  queue text default 'default',
  priority integer default 0,
  run_at timestamptz default null,
  delay interval default null,
  max_attempts integer default null,
  timeout interval default null,
  expires_at timestamptz default null,
  unique_key text default null,
  tags text[] default '{}',
  metadata jsonb default '{}',
  org text default 'default',
  traceparent text default null,
  batch_id uuid default null,
  depends_on jsonb default null,
  limit_key text default null,
  cost integer default 1,
  cache boolean default null,
  cache_for interval default null,
  cache_version text default null) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_id uuid := queue_pg.uuid7();
  v_now timestamptz := queue_pg.now();
  v_run_at timestamptz := coalesce(submit.run_at, v_now + coalesce(submit.delay, '0'));
  v_owner uuid;
begin
  if submit.depends_on is not null or submit.cache or submit.cache_for is not null or submit.cache_version is not null then
    return (
      select s.id
      from queue_pg.submit_many(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'kind', submit.kind, 'queue', submit.queue, 'priority', submit.priority, 'run_at', v_run_at,
        'max_attempts', submit.max_attempts, 'timeout_seconds', extract(epoch from submit.timeout),
        'expires_at', submit.expires_at, 'unique_key', submit.unique_key, 'tags', to_jsonb(submit.tags), 'org', submit.org,
        'traceparent', submit.traceparent, 'batch_id', submit.batch_id, 'limit_key', submit.limit_key, 'cost', submit.cost,
        'cache', submit.cache, 'cache_for_seconds', extract(epoch from submit.cache_for), 'cache_version', submit.cache_version))
        || jsonb_build_object('payload', submit.payload, 'metadata', submit.metadata)
        || case when submit.depends_on is null then '{}' else jsonb_build_object('depends_on', submit.depends_on) end)) s);
  end if;
  if submit.unique_key is not null then
    if length(submit.unique_key) not between 1 and 255 then
      perform queue_pg.raise_invalid('unique_key', 'must have 1 to 255 characters');
    end if;
    v_owner := queue_pg.take_unique_key(
      coalesce(submit.org, 'default'), submit.unique_key, v_id, coalesce(submit.queue, 'default'), submit.kind,
      coalesce(submit.payload, '{}'));
    if v_owner <> v_id then
      return v_owner;
    end if;
  end if;
  insert into queue_pg.jobs (
    id, run_at, created_at, state, max_attempts, priority, org, queue, kind, payload, timeout, expires_at, unique_key,
    tags, metadata, traceparent, batch_id, limit_key, cost)
  values (
    v_id, v_run_at, v_now, case when v_run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state,
    submit.max_attempts,
    coalesce(submit.priority, 0), coalesce(submit.org, 'default'), coalesce(submit.queue, 'default'), submit.kind,
    coalesce(submit.payload, '{}'), queue_pg.plain_interval(submit.timeout), submit.expires_at, submit.unique_key,
    coalesce(submit.tags, '{}'), coalesce(submit.metadata, '{}'), submit.traceparent, submit.batch_id,
    submit.limit_key, coalesce(submit.cost, 1));
  return v_id;
end
$$;

comment on function queue_pg.submit is
  'Stores one job and returns its id: select queue_pg.submit(''chat'', ''{"prompt": "hi"}'', priority => 10).';
