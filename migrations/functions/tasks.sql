-- Tasks: jobs that are planned into subtasks, jobs of their own.
--
-- A planned task is a job that waits for its subtasks as for any parents (dependencies.sql): each is an edge of
-- queue_pg.dependencies that also says what the subtask is to do. So it takes no worker's slot while they run, and their
-- ends settle it, in the transaction that ends the last of them, or the first that does not complete: change_children()
-- completes a task with the results of its subtasks, and nobody claims it for that.
--
-- Whoever plans is one of two: rules, when the task is submitted, or whoever runs the job, under its lease: the outcome
-- `plan` of finish() makes the subtasks and has the job wait for them, so a plan counts once, as any outcome does.

create or replace function queue_pg.most_subtasks() returns integer language sql immutable parallel safe return 100;
create or replace function queue_pg.most_description_chars() returns integer
language sql immutable parallel safe return 10000;

comment on function queue_pg.most_subtasks() is 'How many subtasks a task may have.';
comment on function queue_pg.most_description_chars() is 'Longest description of a task, and of a subtask that somebody else than the rules made.';

-- The planner `rules`. ASCII alone is folded, whatever the database's locale.
create or replace function queue_pg.rules_plan(description text) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when strpos(lower(description collate "C"), 'authentication') > 0 then array[
      'Design user database schema', 'Implement JWT token generation', 'Create login/logout endpoints',
      'Add password hashing with bcrypt']
    when strpos(lower(description collate "C"), 'api') > 0 then array[
      'Define API endpoints and routes', 'Implement request validation', 'Add error handling middleware',
      'Write API documentation']
    else array[
      'Research requirements for: ' || description, 'Implement core logic for: ' || description,
      'Test and validate: ' || description]
    end
$$;

comment on function queue_pg.rules_plan(text) is 'Splits a description into subtasks by fixed rules.';

-- Refuses what is no plan, and returns how many subtasks it has. A plan is an object of `subtasks` and, of the jobs that they
-- become, `queue`, `kind`, `max_attempts` and `timeout_seconds`; what is null is as the task says, else the default.
create or replace function queue_pg.check_plan(plan jsonb) returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
  v_nr integer;
begin
  if jsonb_typeof(plan -> 'subtasks') is distinct from 'array' then
    perform queue_pg.raise_invalid('subtasks', 'must be an array of texts');
  end if;
  v_count := jsonb_array_length(plan -> 'subtasks');
  if v_count not between 1 and queue_pg.most_subtasks() then
    perform queue_pg.raise_invalid('subtasks', format('has %s entries; must have 1 to %s', v_count, queue_pg.most_subtasks()));
  end if;
  select e.ordinality - 1 into v_nr from jsonb_array_elements(plan -> 'subtasks') with ordinality e
  where jsonb_typeof(e.value) <> 'string' or e.value #>> '{}' !~ '\S'
    -- The rules put some words before a description.
    or length(e.value #>> '{}') > queue_pg.most_description_chars() + 100
  order by e.ordinality limit 1;
  if found then
    perform queue_pg.raise_invalid(
      format('subtasks[%s]', v_nr), format('must be a text of 1 to %s characters', queue_pg.most_description_chars()));
  end if;
  return v_count;
end
$$;

-- What a described task says of its subtasks, for plans that do not. Payloads may be anybody's: what cannot be is left out.
create or replace function queue_pg.said_of_subtasks(kind text, payload jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'subtask_queue', case when jsonb_typeof(payload -> 'subtask_queue') = 'string'
      and length(payload ->> 'subtask_queue') between 1 and 200 then payload -> 'subtask_queue' end,
    'max_attempts', case when payload ->> 'max_attempts' ~ '^([1-9][0-9]{0,2}|1000)$' then payload -> 'max_attempts' end,
    'timeout_seconds', case when jsonb_typeof(payload -> 'timeout_seconds') = 'number'
      and payload -> 'timeout_seconds' between '0.001' and '31536000' then payload -> 'timeout_seconds' end))
  where kind = 'plan'
$$;

-- Makes the subtasks of a job whose row the caller has locked or just made, and has it wait for them; the caller sees to
-- its state. They have its priority, tenant and limit, and start with it.
create or replace function queue_pg.add_subtasks(task_id uuid, plan jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_count integer := queue_pg.check_plan(plan);
  v_now timestamptz := queue_pg.now();
  v_task queue_pg.jobs;
  v_said jsonb;
begin
  select j.* into v_task from queue_pg.jobs j where j.id = add_subtasks.task_id;
  v_said := queue_pg.said_of_subtasks(v_task.kind, v_task.payload);
  with subtask as materialized (
    select e.ordinality::integer - 1 as nr, e.value #>> '{}' as description,
      queue_pg.uuid7_at(v_now + e.ordinality * interval '1 microsecond') as id
    from jsonb_array_elements(plan -> 'subtasks') with ordinality e
  ),
  stored as (
    insert into queue_pg.jobs (
      id, run_at, created_at, state, max_attempts, cost, priority, org, queue, kind, payload, timeout, limit_key, parent_id,
      traceparent, awaited)
    select s.id, greatest(v_task.run_at, v_now), v_now,
      case when v_task.run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state,
      coalesce(plan ->> 'max_attempts', v_said ->> 'max_attempts')::integer, v_task.cost, v_task.priority, v_task.org,
      coalesce(plan ->> 'queue', v_said ->> 'subtask_queue', 'work_queue'), coalesce(plan ->> 'kind', 'subtask'),
      jsonb_build_object('task_id', v_task.id, 'subtask_id', format('%s-%s', v_task.id, s.nr),
        'description', s.description, 'priority', v_task.priority),
      coalesce(plan ->> 'timeout_seconds', v_said ->> 'timeout_seconds')::float8 * interval '1 second', v_task.limit_key, v_task.id, v_task.traceparent, true
    from subtask s order by s.nr
  )
  insert into queue_pg.dependencies (child_id, name, parent_id, on_unsuccessful, subtask)
  select v_task.id, 'subtask-' || s.nr, s.id, 'fail', s.description from subtask s;
  update queue_pg.jobs j set parents_left = v_count
  where j.id = v_task.id and j.parents_left is distinct from v_count;
end
$$;

-- Stores a task that is planned by the rules, together with its subtasks. `job` is as for submit_many(); its payload has the
-- `description`, and perhaps `subtask_queue`, and `max_attempts` and `timeout_seconds` of the subtasks.
create or replace function queue_pg.submit_by_rules(job jsonb, out id uuid, out created boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload jsonb := job -> 'payload';
  v_description text := v_payload ->> 'description';
  v_plan jsonb;
begin
  if jsonb_typeof(v_payload -> 'description') is distinct from 'string' or v_description !~ '\S'
    or length(v_description) > queue_pg.most_description_chars() then
    perform queue_pg.raise_invalid(
      'description', format('must be a text of 1 to %s characters', queue_pg.most_description_chars()));
  end if;
  v_plan := jsonb_build_object(
    'subtasks', to_jsonb(queue_pg.rules_plan(v_description)), 'queue', v_payload -> 'subtask_queue',
    'max_attempts', v_payload -> 'max_attempts', 'timeout_seconds', v_payload -> 'timeout_seconds');
  select s.id, s.created into submit_by_rules.id, submit_by_rules.created
  from queue_pg.submit_many(jsonb_build_array(
    job || jsonb_build_object('parents_left', jsonb_array_length(v_plan -> 'subtasks')))) s;
  if submit_by_rules.created then
    perform queue_pg.add_subtasks(submit_by_rules.id, v_plan);
  end if;
end
$$;

-- Stores a task and returns its id; with a unique key that already names the same task, the id of that one. The planner is
-- `rules`, which plans here and now, or `llm`, for which a worker asks a model.
create or replace function queue_pg.submit_task(
  description text,
  planner text default 'rules',
  name text default null,
  queue text default 'default',
  subtask_queue text default 'work_queue',
  priority integer default 0,
  run_at timestamptz default null,
  delay interval default null,
  max_attempts integer default null,
  timeout interval default null,
  unique_key text default null,
  tags text[] default '{}',
  metadata jsonb default '{}',
  org text default 'default',
  traceparent text default null,
  model text default null) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_run_at timestamptz := coalesce(submit_task.run_at, v_now + coalesce(submit_task.delay, '0'));
  v_timeout float8 := extract(epoch from submit_task.timeout);
  v_job jsonb;
begin
  if submit_task.planner is null or submit_task.planner not in ('rules', 'llm') then
    perform queue_pg.raise_invalid('planner', 'must be rules or llm');
  elsif submit_task.description is null or submit_task.description !~ '\S'
    or length(submit_task.description) > queue_pg.most_description_chars() then
    perform queue_pg.raise_invalid(
      'description', format('must be a text of 1 to %s characters', queue_pg.most_description_chars()));
  elsif length(submit_task.name) not between 1 and 200 then
    perform queue_pg.raise_invalid('name', 'must have 1 to 200 characters');
  elsif submit_task.model is not null and submit_task.planner = 'rules' then
    perform queue_pg.raise_invalid('model', 'is for the planner llm');
  end if;
  v_job := jsonb_strip_nulls(jsonb_build_object(
    'kind', 'plan', 'queue', submit_task.queue, 'priority', submit_task.priority, 'run_at', v_run_at,
    'max_attempts', submit_task.max_attempts, 'timeout_seconds', v_timeout, 'unique_key', submit_task.unique_key,
    'tags', to_jsonb(submit_task.tags), 'org', submit_task.org, 'traceparent', submit_task.traceparent,
    'payload', jsonb_build_object(
      'description', submit_task.description, 'planner', submit_task.planner, 'subtask_queue', submit_task.subtask_queue,
      'max_attempts', submit_task.max_attempts, 'timeout_seconds', v_timeout, 'model', submit_task.model)))
    || jsonb_build_object('metadata', coalesce(submit_task.metadata, '{}') || queue_pg.task_metadata(
      submit_task.name, case when v_run_at > v_now then v_run_at end));
  if submit_task.planner = 'rules' then
    return (select s.id from queue_pg.submit_by_rules(v_job) s);
  end if;
  return (select s.id from queue_pg.submit_many(jsonb_build_array(v_job)) s);
end
$$;

comment on function queue_pg.submit_task is
  'Stores a task that is planned into subtasks, and returns its id: select queue_pg.submit_task(''Build an API'').';

-- What is kept of a task beside what any job has.
create or replace function queue_pg.task_metadata(name text, scheduled_for timestamptz) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select case when name is null and scheduled_for is null then '{}'
    else jsonb_build_object('task', jsonb_strip_nulls(jsonb_build_object('name', name, 'scheduled_for', scheduled_for))) end
$$;

-- Has the job that a worker holds wait for subtasks, and completed by them; for planners in any language. A stale lease raises
-- QP003.
create or replace function queue_pg.plan(
  id uuid, lease_token bigint, subtasks text[], queue text default null, kind text default null,
  max_attempts integer default null, timeout interval default null) returns text
language sql as $$
  select queue_pg.finish_one(id, lease_token, 'plan', jsonb_build_object(
    'subtasks', to_jsonb(subtasks), 'queue', queue, 'kind', kind, 'max_attempts', max_attempts,
    'timeout_seconds', extract(epoch from timeout)), null, null)
$$;

comment on function queue_pg.plan is
  'Ends an attempt with a plan: subtasks are made of it, and the job waits for them and is completed with their results.';

-- --- how a task ends --------------------------------------------------------------------------------------------------

-- The results of a task's subtasks, in their order. One after the other, so that what is too much is not put together first.
create or replace function queue_pg.gather_subtasks(task_id uuid) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_most constant bigint := 33554432;
  v_bytes bigint := 2;
  v_name text;
  v_result text;
  v_results text[] := '{}';
begin
  for v_name, v_result in
    select d.name, case when f.id is not null then coalesce(f.result, 'null')::text end
    from queue_pg.dependencies d left join queue_pg.finished_jobs f on f.id between d.parent_id and d.parent_id
    where d.child_id = gather_subtasks.task_id and d.subtask is not null
    order by length(d.name), d.name
  loop
    if v_result is null then
      perform queue_pg.raise_invalid('output', format('the result of %s is not kept any more', v_name));
    end if;
    v_bytes := v_bytes + octet_length(v_result) + 2;
    if v_bytes > v_most then
      perform queue_pg.raise_invalid('output', format('the results of the subtasks are over %s bytes; read them one by one', v_most));
    end if;
    v_results := array_append(v_results, v_result);
  end loop;
  return ('[' || array_to_string(v_results, ',') || ']')::jsonb;
end
$$;

-- The error of a task one of whose parents does not complete, from what fault_of() says of that one.
create or replace function queue_pg.subtask_error(task_id uuid, error jsonb) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := error ->> 'parent';
  v_subtask queue_pg.all_jobs;
  v_id text;
begin
  if v_name not like 'subtask-%' then
    return error;
  end if;
  v_id := task_id || substr(v_name, 8);
  select j.* into v_subtask from queue_pg.job((error ->> 'parent_id')::uuid) j;
  return jsonb_strip_nulls(jsonb_build_object(
    'code', replace(error ->> 'code', 'parent_', 'subtask_'),
    'message', left(format('subtask %s %s: %s', v_id,
      case error ->> 'code' when 'parent_cancelled' then 'was cancelled' else 'failed' end,
      coalesce(v_subtask.error ->> 'message', 'no reason is known')), 2000),
    'subtask_id', v_id, 'job_id', error ->> 'parent_id', 'subtask_code', v_subtask.error ->> 'code'));
end
$$;

-- Locks those of the jobs that are unfinished, with the subtasks of those that are tasks, and theirs, and returns them: all
-- in the order of their ids, as everywhere.
create or replace function queue_pg.lock_families(ids uuid[]) returns uuid[]
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
  v_locked uuid[] := '{}';
  v_left uuid[];
begin
  loop
    -- At a second look there may be more: a plan that was made while this waited for its job. Its subtasks are newer than all
    -- there was.
    with recursive family as (
      select j.id, j.parents_left from unnest(ids) as i (id) join queue_pg.jobs j on j.id between i.id and i.id
      union
      select j.id, j.parents_left
      from family f
      join queue_pg.dependencies d on d.child_id between f.id and f.id and d.subtask is not null
      join queue_pg.jobs j on j.id between d.parent_id and d.parent_id
      where f.parents_left > 0
    )
    select array_agg(f.id) into v_left from (select m.id from family m except select unnest(v_locked)) f;
    exit when v_left is null;
    select v_locked || coalesce(array_agg(l.id), '{}') into v_locked
    from (
      select j.id from (select u as id from unnest(v_left) u order by u) as p
      join queue_pg.jobs j on j.id between p.id and p.id
      order by p.id for update of j) l;
  end loop;
  return v_locked;
end
$$;

-- The same, for who holds jobs already: raises lock_not_available instead of waiting for one for longer than a moment.
create or replace function queue_pg.lock_families_soon(ids uuid[]) returns uuid[]
language sql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '250ms'
as $$ select queue_pg.lock_families(ids) $$;

-- Ends jobs as cancelled that the caller has locked, all before this locks any limit.
create or replace function queue_pg.end_cancelled(ids uuid[], error jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_workers text[];
begin
  if ids = '{}' then
    return;
  end if;
  select array_agg(distinct j.worker_id) filter (where j.state = 'running') into v_workers
  from unnest(ids) as l (id) join queue_pg.jobs j on j.id between l.id and l.id;
  perform queue_pg.record_events(
    ids, array_fill('cancelled'::text, array[cardinality(ids)]),
    array_fill(jsonb_build_object('error', error), array[cardinality(ids)]));
  perform queue_pg.retire(
    ids, array_fill('cancelled'::queue_pg.job_state, array[cardinality(ids)]),
    array_fill(null::jsonb, array[cardinality(ids)]), array_fill(error, array[cardinality(ids)]));
  perform queue_pg.send_hint('queue_pg_cancel', left(w, 1000)) from unnest(v_workers) w, queue_pg.settings s where s.notify;
end
$$;

-- For retry() of a task: puts those of its subtasks back that failed or were cancelled. What has completed stays. False: the
-- job has no subtasks.
create or replace function queue_pg.retry_subtasks(task_id uuid, max_attempts integer, fresh boolean) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid;
  v_name text;
  v_outcome queue_pg.job_state;
  v_state text;
begin
  for v_id, v_name, v_outcome in
    select d.parent_id, d.name, d.outcome from queue_pg.dependencies d
    where d.child_id = retry_subtasks.task_id and d.subtask is not null order by d.parent_id
  loop
    v_state := queue_pg.state_of(v_id);
    if v_state in ('failed', 'cancelled') then
      begin
        perform from queue_pg.retry(v_id, retry_subtasks.max_attempts, retry_subtasks.fresh);
      exception when sqlstate 'QP002' then
        null; -- Somebody else has retried it just now.
      end;
    elsif v_state is null and v_outcome is distinct from 'completed' then
      raise exception using errcode = 'QP002',
        message = format('cannot retry job %s: its subtask %s%s is forgotten', task_id, task_id, substr(v_name, 8)),
        detail = jsonb_build_object(
          'id', task_id, 'action', 'retry', 'state', 'failed', 'reason', 'one of its subtasks is forgotten')::text;
    end if;
  end loop;
  return v_id is not null;
end
$$;

-- For those who retry many: retry() of a job that has ended, unless it is a task of which a subtask is forgotten; that stays as it
-- is, and the answer is false. True also of one that was put back a moment ago, as a subtask with its task.
create or replace function queue_pg.retry_if_whole(id uuid, max_attempts integer default null, fresh boolean default false)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_parents_left integer;
begin
  select f.parents_left into v_parents_left from queue_pg.finished_jobs f
  where f.id between retry_if_whole.id and retry_if_whole.id;
  if not found then
    return true;
  elsif v_parents_left > 0 then
    -- For these alone: many subtransactions slow down everybody.
    begin
      perform from queue_pg.retry(retry_if_whole.id, retry_if_whole.max_attempts, retry_if_whole.fresh);
    exception when sqlstate 'QP002' then
      return false;
    end;
  else
    perform from queue_pg.retry(retry_if_whole.id, retry_if_whole.max_attempts, retry_if_whole.fresh);
  end if;
  return true;
end
$$;

-- Retries many jobs that have ended, whose rows the caller has locked; `incomplete` are the tasks that retry_if_whole() leaves
-- as they are. One retry after the other would take the rows of each kind in the order of the jobs. So what several of
-- them have to lock is locked before, one kind after the other as retry() has them, and those of one kind in the order of
-- their keys, as with all who lock several.
create or replace function queue_pg.retry_each(
  ids uuid[], max_attempts integer default null, fresh boolean default false, out retried integer, out incomplete integer)
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
  v_plain uuid[];
  v_children uuid[];
  v_key_orgs text[];
  v_keys text[];
  v_key_ids uuid[];
  v_cache_keys bytea[];
  v_batches uuid[];
  v_id uuid;
begin
  retried := 0;
  incomplete := 0;
  -- FILTERs, not WHEREs, as in act_on_jobs().
  select coalesce(array_agg(f.id order by f.cache_key nulls first, f.id) filter (where coalesce(f.parents_left, 0) <= 0), '{}'),
    coalesce(array_agg(f.id order by f.cache_key nulls first, f.id) filter (where f.parents_left > 0), '{}'),
    array_agg(f.org::text) filter (where f.unique_key is not null),
    array_agg(f.unique_key::text) filter (where f.unique_key is not null),
    array_agg(f.id) filter (where f.unique_key is not null),
    array_agg(distinct f.cache_key) filter (where f.cache_key is not null), array_agg(distinct f.batch_id)
  into v_plain, v_children, v_key_orgs, v_keys, v_key_ids, v_cache_keys, v_batches
  from unnest(ids) as i (id) join queue_pg.finished_jobs f on f.id between i.id and i.id;
  perform from unnest(v_key_orgs, v_keys, v_key_ids) as k (org, unique_key, job_id)
  join queue_pg.unique_keys u on u.org = k.org and u.unique_key = k.unique_key and u.job_id = k.job_id
  order by u.org, u.unique_key for update of u;
  -- Those that are gone are made again by the retries, in this order too.
  perform from unnest(v_cache_keys) as k (key) join queue_pg.cache_entries c on c.cache_key between k.key and k.key
  order by c.cache_key for no key update of c;
  perform from unnest(v_batches) as i (id) join queue_pg.batches b on b.id between i.id and i.id
  order by b.id for update of b;

  -- Shared work in the order of its keys. Who waits for others is behind: a parent that lives must not be held by who comes
  -- to what is before it, and one that is retried here is the caller's own.
  foreach v_id in array v_plain loop
    if queue_pg.retry_if_whole(v_id, max_attempts, fresh) then
      retried := retried + 1;
    else
      incomplete := incomplete + 1;
    end if;
  end loop;
  if v_children <> '{}' then
    -- Of all at once: each by itself would wait for its own with those of the one before.
    perform from queue_pg.hold_parents(array(
      select distinct d.parent_id from unnest(v_children) as c (id) join queue_pg.dependencies d on d.child_id between c.id and c.id));
  end if;
  foreach v_id in array v_children loop
    if queue_pg.retry_if_whole(v_id, max_attempts, fresh) then
      retried := retried + 1;
    else
      incomplete := incomplete + 1;
    end if;
  end loop;
end
$$;

-- Whether a job has subtasks.
create or replace function queue_pg.is_planned(id uuid) returns boolean
language sql volatile as $$
  select exists (select from queue_pg.dependencies d where d.child_id = is_planned.id and d.subtask is not null)
$$;

-- --- looking ----------------------------------------------------------------------------------------------------------

-- The job that an id of a task stands for: its own, or <task>-<n> for a subtask. Null: nobody knows it.
create or replace function queue_pg.find_task(id text) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(lower(id), '^([0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12})(?:-(0|[1-9][0-9]{0,3}))?$');
begin
  if v_parts[2] is null then
    return v_parts[1]::uuid;
  end if;
  return (
    select d.parent_id from queue_pg.dependencies d
    where d.child_id = v_parts[1]::uuid and d.name = 'subtask-' || v_parts[2] and d.subtask is not null);
end
$$;

comment on function queue_pg.find_task(text) is 'The job of a task''s id, which may be that of a subtask: <task>-<n>.';

-- What a waiting job is as a task: one that waits for its subtasks is what they are, queued until one has started.
create or replace function queue_pg.waiting_task_status(id uuid) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_started boolean;
  v_later boolean;
begin
  -- One that is not live has ended, so it has started.
  select bool_or(j.id is null or j.claimed_at is not null), bool_and(j.state = 'scheduled') into v_started, v_later
  from queue_pg.dependencies d left join queue_pg.jobs j on j.id between d.parent_id and d.parent_id
  where d.child_id = waiting_task_status.id and d.subtask is not null;
  return case when v_started is null then 'waiting' when v_started then 'running' when v_later then 'scheduled' else 'queued' end;
end
$$;

-- What a task has that its job has not.
create or replace function queue_pg.task_facts(
  id uuid, state queue_pg.job_state, parent_id uuid, out status text, out parent_task_id uuid, out subtasks text[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  select coalesce(array_agg(d.subtask order by length(d.name), d.name) filter (where d.subtask is not null), '{}'),
    coalesce(task_facts.parent_id, (array_agg(d.parent_id) filter (where d.name = 'parent' and d.subtask is null))[1])
  into subtasks, parent_task_id
  from queue_pg.dependencies d
  where d.child_id = task_facts.id and (d.subtask is not null or d.name = 'parent');
  status := case when state = 'waiting' then queue_pg.waiting_task_status(task_facts.id) else state::text end;
end
$$;

-- The newest ids of live jobs, or of finished ones, for lists of tasks: by walking the index on ids backwards. `state` is a
-- task's status; of finished jobs null or completed, the few others have an index of their own.
create or replace function queue_pg.newest_tasks(live boolean, only_state text, only_org text, before uuid, most integer)
returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_before uuid := coalesce(before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  v_now timestamptz := queue_pg.now();
begin
  if live then
    return query
    select j.id from queue_pg.jobs j
    where j.id < v_before and (only_org is null or j.org = only_org)
      and (only_state is null
        or case when j.state = 'waiting' then queue_pg.waiting_task_status(j.id) else j.state::text end = only_state)
    order by j.id desc limit most;
  else
    return query
    select f.id from queue_pg.finished_jobs f
    where f.id < v_before and (only_org is null or f.org = only_org)
      and (only_state is null or f.state = 'completed') and f.retain_until > v_now
    order by f.id desc limit most;
  end if;
end
$$;

-- Metadata may be anybody's.
create or replace function queue_pg.moment_or_null(value text) returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return value::timestamptz;
exception when data_exception then
  return null;
end
$$;

-- A task as people and programs look at it: any job, live or finished, by its id or as <task>-<n>.
create or replace function queue_pg.task(id text)
returns table (
  task_id uuid, name text, description text, prompt text, status text, priority smallint, created_at timestamptz,
  scheduled_for timestamptz, subtasks text[], subtask_ids text[], output jsonb, error jsonb, attempts integer,
  max_attempts integer, parent_task_id uuid)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select j.id, coalesce(j.metadata #>> '{task,name}', case when j.kind = 'subtask' then j.payload ->> 'subtask_id' end),
    case when j.kind in ('plan', 'subtask') then j.payload ->> 'description' end,
    case when j.kind = 'chat' then j.payload ->> 'prompt' end, f.status, j.priority, j.created_at,
    coalesce(queue_pg.moment_or_null(j.metadata #>> '{task,scheduled_for}'),
      case when j.state = 'scheduled' and j.attempt = 0 then j.run_at end),
    f.subtasks, array(select format('%s-%s', j.id, n - 1) from generate_series(1, cardinality(f.subtasks)) n),
    j.result, j.error, j.attempt, j.max_attempts, f.parent_task_id
  from queue_pg.job(queue_pg.find_task(task.id)) j
  cross join lateral queue_pg.task_facts(j.id, j.state, j.parent_id) f;
end
$$;

comment on function queue_pg.task(text) is 'A task by its id or as <task>-<n>: select * from queue_pg.task(''...'').';
