-- Batches: adding jobs, counting ends, and what people do with a batch as a whole. settle.sql decides its end.
--
-- Nobody who adds or finishes jobs writes the batch's row. Who adds holds a shared advisory lock until its transaction
-- ends, and close_batch() takes it exclusively: when a batch is closed, all that will ever be in it is there to be
-- counted. An advisory lock and not one of the row, which would be written for every job added.

create or replace function queue_pg.batch_key(id uuid) returns bigint
language sql immutable strict parallel safe
return hashtextextended(id::text, 7310579610401947747);

-- Called by the trigger of jobs for a row with a batch_id: it has to name an open batch of the same tenant. Asked once a
-- transaction and batch: the lock that comes with the answer keeps it true. A job that retry() puts back was in already.
create or replace function queue_pg.join_batch(batch_id uuid, job_id uuid, org text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_joined text := join_batch.batch_id || ' ' || join_batch.org;
  v_state text;
begin
  if current_setting('queue_pg.joined', true) = v_joined
    or current_setting('queue_pg.rejoining', true) = join_batch.job_id::text then
    return;
  end if;
  perform pg_advisory_xact_lock_shared(queue_pg.batch_key(join_batch.batch_id));
  if current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then
    select b.state into v_state from queue_pg.batches b
    where b.id = join_batch.batch_id and b.org = join_batch.org;
  else
    -- This transaction's snapshot may be older than a close: with a lock on the row that is an error (40001).
    select b.state into v_state from queue_pg.batches b
    where b.id = join_batch.batch_id and b.org = join_batch.org for share;
  end if;
  if v_state is null then
    perform queue_pg.raise_invalid('batch_id', format('there is no batch %s', join_batch.batch_id));
  elsif v_state <> 'open' then
    perform queue_pg.raise_wrong_batch_state(join_batch.batch_id, 'add a job to', v_state);
  end if;
  perform set_config('queue_pg.joined', v_joined, true);
end
$$;

-- Called by retry() before it puts a job back: a finished batch has something to wait for again. Waits for whoever
-- decides the batch's end; they pass over batches that are locked.
create or replace function queue_pg.rejoin_batch(batch_id uuid, job_id uuid, was queue_pg.job_state) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from queue_pg.batches b where b.id = rejoin_batch.batch_id for update;
  update queue_pg.batches b
  set state = 'closed', run = b.run + 1, finished_at = null, cancelled_at = null, first_failed_at = null,
    first_failed_id = null
  where b.id = rejoin_batch.batch_id and b.finished_at is not null;
  insert into queue_pg.batch_counters (batch_id, failed, cancelled)
  values (rejoin_batch.batch_id, -(was = 'failed')::integer, -(was = 'cancelled')::integer);
  perform set_config('queue_pg.rejoining', rejoin_batch.job_id::text, true);
end
$$;

-- Called by retire() with the batches of the jobs it moved. Maintenance is woken by who seems to have ended the last job
-- of a closed batch, or has made the first one fail where that calls back. Two who end the last two at once do not see each other: then it finds out by itself within a second.
create or replace function queue_pg.count_batches(batch_ids uuid[], states queue_pg.job_state[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  insert into queue_pg.batch_counters (batch_id, completed, failed, cancelled)
  select u.batch_id, count(*) filter (where u.state = 'completed'), count(*) filter (where u.state = 'failed'),
    count(*) filter (where u.state = 'cancelled')
  from unnest(batch_ids, states) as u (batch_id, state) group by u.batch_id;
  if exists (
    select
    from (select distinct u as id from unnest(batch_ids) u) ended
    join queue_pg.batches b on b.id between ended.id and ended.id
    where b.state = 'closed'
      -- As of the last fold few were left, so there are few changes to sum up.
      and b.total - b.completed - b.failed - b.cancelled <= 200
      and b.total - b.completed - b.failed - b.cancelled <= (
        select sum(c.completed + c.failed + c.cancelled) from queue_pg.batch_counters c where c.batch_id = b.id)
  ) or ('failed' = any (states) and exists (
    select
    from (select distinct u.batch_id as id from unnest(batch_ids, states) as u (batch_id, state) where u.state = 'failed') f
    join queue_pg.batches b on b.id between f.id and f.id
    where b.on_first_failed is not null and b.first_failed_at is null
  )) then
    perform queue_pg.wake_due(queue_pg.now());
  end if;
end
$$;

create or replace view queue_pg.batch_progress as
select
  b.id, b.org, b.name, b.state, b.run, t.total, t.completed, t.failed, t.cancelled,
  t.total - t.completed - t.failed - t.cancelled as unfinished,
  case when t.total = 0 then 100
    else round(100.0 * (t.completed + t.failed + t.cancelled) / t.total, 1) end::double precision as percent,
  b.on_complete, b.on_failed, b.on_all, b.callback_ids, b.callback_error, b.metadata::jsonb as metadata, b.created_at,
  b.closed_at, b.cancelled_at, b.finished_at, b.on_first_failed, b.first_failed_at, b.first_failed_id
from queue_pg.batches b
cross join lateral (
  select coalesce(sum(c.completed), 0)::bigint as completed, coalesce(sum(c.failed), 0)::bigint as failed,
    coalesce(sum(c.cancelled), 0)::bigint as cancelled
  from queue_pg.batch_counters c where c.batch_id = b.id) as n
cross join lateral (
  select b.completed + n.completed as completed, b.failed + n.failed as failed, b.cancelled + n.cancelled as cancelled,
    -- Counted only while jobs may still be added.
    coalesce(b.total, b.completed + n.completed + b.failed + n.failed + b.cancelled + n.cancelled
      + (select count(*) from queue_pg.jobs j where j.batch_id = b.id and b.total is null)) as total) as t;

comment on view queue_pg.batch_progress is
  'Batches with their counts as of now. What is unfinished, by state: select state, count(*) from queue_pg.jobs where batch_id = ...';

create or replace function queue_pg.batch(id uuid) returns setof queue_pg.batch_progress
language sql volatile as $$
  select p.* from queue_pg.batch_progress p where p.id = batch.id
$$;

comment on function queue_pg.batch(uuid) is 'The batch with this id and its counts; no row when there is none.';

-- The job of a callback that is given as the URL of a webhook; others as they are, and null for none.
create or replace function queue_pg.callback_spec(given jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case jsonb_typeof(given)
    when 'string' then jsonb_build_object('kind', 'webhook', 'payload', jsonb_build_object('url', given))
    when 'null' then null
    else given end
$$;

-- What workers would refuse in the payload of a webhook, as far as that can be seen here.
create or replace function queue_pg.check_webhook(field text, payload jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  select k into v_unknown from jsonb_object_keys(payload) k where k not in ('url', 'body', 'headers', 'secret_name') limit 1;
  if found then
    perform queue_pg.raise_invalid(field || '.' || left(v_unknown, 100), 'is no field of a webhook');
  elsif coalesce(payload ->> 'url', '') !~* '^https?://[^/?#@[:space:]]+([/?#]\S*)?$' or length(payload ->> 'url') > 2048 then
    perform queue_pg.raise_invalid(field || '.url', 'must be an http or https URL, without user and password');
  elsif jsonb_typeof(payload -> 'body') not in ('object', 'null') then
    perform queue_pg.raise_invalid(field || '.body', 'must be an object: the batch is added to it');
  elsif jsonb_typeof(payload -> 'secret_name') <> 'string' or length(payload ->> 'secret_name') not between 1 and 100 then
    perform queue_pg.raise_invalid(field || '.secret_name', 'must be the name of a secret');
  elsif jsonb_typeof(payload -> 'headers') <> 'object' or exists (
    select from jsonb_each(case jsonb_typeof(payload -> 'headers') when 'object' then payload -> 'headers' else '{}' end) h
    where jsonb_typeof(h.value) <> 'string') then
    perform queue_pg.raise_invalid(field || '.headers', 'must be an object of strings');
  end if;
end
$$;

-- A callback is a job like one for submit_many(), without what makes no sense in it. Raises QP005 naming the field, so
-- that the batch's end need not fail.
create or replace function queue_pg.check_callback(field text, spec jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  if spec is null then
    return;
  end if;
  if jsonb_typeof(spec) <> 'object' or nullif(spec ->> 'kind', '') is null then
    perform queue_pg.raise_invalid(field, 'must be a job, an object with a kind, or the URL of a webhook');
  end if;
  select k into v_unknown from jsonb_object_keys(spec) k
  where k not in ('kind', 'payload', 'queue', 'priority', 'delay_seconds', 'max_attempts', 'timeout_seconds', 'tags',
    'metadata', 'traceparent', 'limit_key', 'cost')
  limit 1;
  if found then
    perform queue_pg.raise_invalid(field || '.' || v_unknown, 'is no field of a callback');
  end if;
  if jsonb_typeof(spec -> 'payload') not in ('object', 'null') then
    perform queue_pg.raise_invalid(field || '.payload', 'must be an object: the batch is added to it');
  end if;
  if spec ->> 'kind' = 'webhook' then
    perform queue_pg.check_webhook(field || '.payload', coalesce(nullif(spec -> 'payload', 'null'), '{}'));
  end if;
  if pg_column_size(spec) > 65536 then
    perform queue_pg.raise_invalid(field, 'must be at most 64 KiB');
  end if;
  if (spec ->> 'delay_seconds')::numeric not between 0 and 315360000 then
    perform queue_pg.raise_invalid(field || '.delay_seconds', 'must be from 0 to 10 years');
  end if;
  perform r.kind::queue_pg.kind, r.queue::queue_pg.queue, r.priority, r.max_attempts::queue_pg.max_attempts,
    (r.timeout_seconds * interval '1 second')::queue_pg.timeout, r.tags::queue_pg.tags,
    nullif(r.metadata, 'null')::queue_pg.metadata, nullif(r.payload, 'null')::queue_pg.payload,
    r.traceparent::queue_pg.traceparent, r.limit_key::queue_pg.limit_key, r.cost::queue_pg.cost
  from jsonb_to_record(spec) as r (
    kind text, payload jsonb, queue text, priority smallint, max_attempts integer, timeout_seconds double precision,
    tags text[], metadata jsonb, traceparent text, limit_key text, cost integer);
exception when data_exception or check_violation then
  perform queue_pg.raise_invalid(field, sqlerrm);
end
$$;

-- Makes an open batch and returns its id. on_complete, on_failed, on_all and on_first_failed are jobs like those for
-- submit_many(), whose payload gets the batch as `batch`, or the URL of a webhook as a JSON string.
create or replace function queue_pg.create_batch(
  name text default null, on_complete jsonb default null, on_failed jsonb default null, on_all jsonb default null,
  metadata jsonb default '{}', org text default 'default', on_first_failed jsonb default null) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid := queue_pg.uuid7();
  v_on_complete jsonb := queue_pg.callback_spec(create_batch.on_complete);
  v_on_failed jsonb := queue_pg.callback_spec(create_batch.on_failed);
  v_on_all jsonb := queue_pg.callback_spec(create_batch.on_all);
  v_on_first_failed jsonb := queue_pg.callback_spec(create_batch.on_first_failed);
begin
  if length(create_batch.name) not between 1 and 200 then
    perform queue_pg.raise_invalid('name', 'must have 1 to 200 characters');
  end if;
  perform queue_pg.check_callback('on_complete', v_on_complete);
  perform queue_pg.check_callback('on_failed', v_on_failed);
  perform queue_pg.check_callback('on_all', v_on_all);
  perform queue_pg.check_callback('on_first_failed', v_on_first_failed);
  insert into queue_pg.batches (id, org, name, on_complete, on_failed, on_all, on_first_failed, metadata)
  values (v_id, coalesce(create_batch.org, 'default'), create_batch.name, v_on_complete, v_on_failed, v_on_all,
    v_on_first_failed, coalesce(nullif(create_batch.metadata, 'null'), '{}'));
  return v_id;
end
$$;

comment on function queue_pg.create_batch is
  'Makes an open batch and returns its id: select queue_pg.create_batch(''import'', on_all => ''{"kind": "report"}'').';

-- Says that no more jobs will be added, so that the batch can end. Waits for transactions that are adding some.
-- Returns the batch; one that is closed already is returned as it is. Raises QP001.
create or replace function queue_pg.close_batch(id uuid) returns setof queue_pg.batch_progress
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_state text;
begin
  perform pg_advisory_xact_lock(queue_pg.batch_key(close_batch.id));
  select b.state into v_state from queue_pg.batches b where b.id = close_batch.id for update;
  if not found then
    perform queue_pg.raise_batch_not_found(close_batch.id);
  end if;
  if v_state = 'open' then
    -- Finishing moves jobs from one part of the sum to the other, in one transaction, and only who holds the lock of
    -- the row folds: one statement counts each job once.
    update queue_pg.batches b
    set state = 'closed', closed_at = queue_pg.now(),
      total = (select p.total from queue_pg.batch_progress p where p.id = close_batch.id)
    where b.id = close_batch.id;
    -- Has maintenance look at it.
    insert into queue_pg.batch_counters (batch_id) values (close_batch.id);
    perform queue_pg.wake_due(queue_pg.now());
    perform set_config('queue_pg.joined', '', true);
  end if;
  return query select p.* from queue_pg.batch_progress p where p.id = close_batch.id;
end
$$;

comment on function queue_pg.close_batch is 'Says that no more jobs will be added to a batch, so that it can end.';

-- Closes a batch and ends up to `max_jobs` of its unfinished jobs as cancelled, running ones too, in the order of their
-- ids. Call it again with `after` => last_id until last_id is null; starting anew skips none. Raises QP001, and
-- QP002 when the batch has ended otherwise.
create or replace function queue_pg.cancel_batch(
  id uuid, reason text default null, max_jobs integer default 1000, after uuid default null)
returns table (cancelled integer, last_id uuid)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_batch queue_pg.batches;
  v_error jsonb := jsonb_build_object(
    'code', 'cancelled', 'message', coalesce(cancel_batch.reason, 'the batch was cancelled'));
  v_after uuid := coalesce(cancel_batch.after, '00000000-0000-0000-0000-000000000000');
  v_max_jobs integer := least(greatest(coalesce(cancel_batch.max_jobs, 1000), 1), 10000);
  v_ids uuid[];
  v_locked uuid[];
begin
  perform from queue_pg.close_batch(cancel_batch.id);
  select b.* into v_batch from queue_pg.batches b where b.id = cancel_batch.id;
  if v_batch.state in ('completed', 'failed') then
    perform queue_pg.raise_wrong_batch_state(cancel_batch.id, 'cancel', v_batch.state);
  end if;
  if v_batch.cancelled_at is null then
    update queue_pg.batches b set cancelled_at = queue_pg.now() where b.id = cancel_batch.id;
  end if;
  select coalesce(array_agg(p.id order by p.id), '{}') into v_ids
  from (
    select j.id from queue_pg.jobs j
    where j.batch_id = cancel_batch.id and j.id > v_after
    order by j.id limit v_max_jobs) p;
  v_locked := queue_pg.lock_families(v_ids);
  perform queue_pg.end_cancelled(v_locked, v_error);
  -- Without subtasks, and those that have ended in the meantime.
  select count(*) into cancelled from (select unnest(v_ids) intersect select unnest(v_locked)) c;
  last_id := case when cardinality(v_ids) = v_max_jobs then v_ids[v_max_jobs] end;
  return next;
end
$$;

comment on function queue_pg.cancel_batch is
  'Closes a batch and cancels some of its unfinished jobs; call it again with after => last_id until that is null.';

-- Puts up to `max_jobs` failed jobs of a batch back into their queues, with `and_cancelled` also cancelled ones, in the
-- order of their ids; a finished batch is closed again until they have ended. Tasks of which a subtask is forgotten stay as they
-- are. Call it again with `after` => last_id until
-- last_id is null. Raises QP001.
create or replace function queue_pg.retry_failed(
  id uuid, max_attempts integer default null, and_cancelled boolean default false, max_jobs integer default 1000,
  after uuid default null)
returns table (retried integer, last_id uuid)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_after uuid := coalesce(retry_failed.after, '00000000-0000-0000-0000-000000000000');
  v_max_jobs integer := least(greatest(coalesce(retry_failed.max_jobs, 1000), 1), 10000);
  v_ids uuid[];
begin
  if not exists (select from queue_pg.batches b where b.id = retry_failed.id) then
    perform queue_pg.raise_batch_not_found(retry_failed.id);
  end if;
  -- All rows before the batch's: retry() of a single job takes them in this order too. Who holds one is retrying it.
  select coalesce(array_agg(p.id order by p.id), '{}') into v_ids
  from (
    select f.id from queue_pg.finished_jobs f
    where f.batch_id = retry_failed.id and f.id > v_after and f.state in ('failed', 'cancelled')
      and (f.state = 'failed' or retry_failed.and_cancelled) and f.retain_until > v_now
    order by f.id limit v_max_jobs for update skip locked) p;
  select r.retried into retried from queue_pg.retry_each(v_ids, retry_failed.max_attempts) r;
  last_id := case when cardinality(v_ids) = v_max_jobs then v_ids[v_max_jobs] end;
  return next;
end
$$;

comment on function queue_pg.retry_failed is
  'Puts some failed jobs of a batch back into their queues; call it again with after => last_id until that is null.';
