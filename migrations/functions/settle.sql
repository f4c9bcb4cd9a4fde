-- The end of batches, decided by maintenance: exactly once, because whoever decides holds the batch's row and turns its
-- state in the transaction that submits the callbacks. Killed in between, nothing has happened. So callbacks need no
-- unique keys, which anybody could have taken before.

-- What it was before it knew of events.
drop function if exists queue_pg.callback_job(jsonb, queue_pg.batches);

-- What a callback is submitted as: the job of the batch, with the batch itself in its payload; a webhook has it in the
-- event that it sends.
create or replace function queue_pg.callback_job(spec jsonb, batch queue_pg.batches, event text) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select spec || jsonb_build_object(
    'org', batch.org,
    'payload', coalesce(nullif(spec -> 'payload', 'null'), '{}') || case
      when spec ->> 'kind' <> 'webhook' then jsonb_build_object('batch', d.about)
      else jsonb_build_object('body', coalesce(nullif(spec #> '{payload,body}', 'null'), '{}') || jsonb_build_object(
        'type', 'batch.' || event,
        'timestamp', to_char(queue_pg.now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'data', d.about)) end)
  from (select jsonb_build_object(
    'id', batch.id, 'name', batch.name, 'state', batch.state, 'run', batch.run, 'total', batch.total,
    'completed', batch.completed, 'failed', batch.failed, 'cancelled', batch.cancelled, 'metadata', batch.metadata) as about
  ) d
$$;

-- Submits callbacks of a batch whose row the caller has locked, and returns their ids; none of them, and null, when one
-- cannot be submitted: callback_error then says why, so that what has happened is recorded all the same.
create or replace function queue_pg.call_back(batch queue_pg.batches, specs jsonb[], event text) returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_jobs jsonb;
  v_ids uuid[];
begin
  select jsonb_agg(queue_pg.callback_job(c.spec, call_back.batch, call_back.event) order by c.nr) into v_jobs
  from unnest(call_back.specs) with ordinality as c (spec, nr) where c.spec is not null;
  if v_jobs is not null then
    -- They belong to jobs that were taken, so a queue that is draining takes them too.
    perform set_config('queue_pg.continuing', 'on', true);
    select array_agg(s.id order by s."position") into v_ids from queue_pg.submit_many(v_jobs) s;
    perform set_config('queue_pg.continuing', '', true);
  end if;
  return v_ids;
exception when others then
  raise warning 'queue_pg.call_back of batch %: %', (call_back.batch).id, sqlerrm;
  update queue_pg.batches b
  set callback_error = left(concat_ws('; ', b.callback_error, sqlerrm), 1000) where b.id = (call_back.batch).id;
  return null;
end
$$;

-- Tells that the first job of a batch has failed in this run. The caller has locked its row.
create or replace function queue_pg.tell_first_failed(id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_batch queue_pg.batches;
  v_ids uuid[];
begin
  update queue_pg.batches b set first_failed_at = queue_pg.now(), callback_error = null
  where b.id = tell_first_failed.id and b.first_failed_at is null
  returning b.* into v_batch;
  if found then
    v_ids := queue_pg.call_back(v_batch, array[v_batch.on_first_failed], 'first_failed');
    update queue_pg.batches b set first_failed_id = v_ids[1] where b.id = tell_first_failed.id;
  end if;
end
$$;

-- Ends a closed batch whose row the caller has locked and whose counts are folded. An end is recorded even if a callback
-- cannot be submitted: callback_error says why.
create or replace function queue_pg.end_batch(id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_batch queue_pg.batches;
  v_ids uuid[];
begin
  update queue_pg.batches b
  set total = b.completed + b.failed + b.cancelled, finished_at = queue_pg.now(), callback_ids = '{}',
    -- What the first failure's callback has run into stays to be seen.
    callback_error = case when b.first_failed_at is not null and b.first_failed_id is null then b.callback_error end,
    state = case
      when b.failed + b.cancelled = 0 then 'completed'
      when b.cancelled_at is not null and b.cancelled > 0 then 'cancelled'
      else 'failed' end
  where b.id = end_batch.id and b.state = 'closed'
  returning b.* into v_batch;
  if not found then
    return;
  end if;
  v_ids := queue_pg.call_back(v_batch, array[
    case when v_batch.state = 'completed' then v_batch.on_complete end,
    case when v_batch.state <> 'completed' then v_batch.on_failed end,
    v_batch.on_all], v_batch.state);
  if v_ids is not null then
    update queue_pg.batches b set callback_ids = v_ids where b.id = end_batch.id;
  end if;
  perform queue_pg.send_hint('queue_pg_result', end_batch.id::text) from queue_pg.settings s where s.notify;
end
$$;

-- Folds the newest changes into the batches they are about and ends those of which nothing is left; returns how many.
-- A batch that somebody has locked (a retry puts jobs back, or another process is at it) is left for the next time, with
-- its changes. Each change is read and removed once, so the work is that of the statements that finished jobs.
create or replace function queue_pg.settle_batches() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed uuid[];
  v_ids uuid[];
  v_batch queue_pg.batches;
  v_failed uuid[];
  v_ended integer := 0;
begin
  select array_agg(distinct c.batch_id) into v_changed
  from (select n.batch_id from queue_pg.batch_counters n limit 100000) c;
  if v_changed is null then
    return 0;
  end if;
  select array_agg(l.id) into v_ids
  from (select b.id from queue_pg.batches b where b.id = any (v_changed) order by b.id for update skip locked) l;
  -- Jobs may outlive their batch.
  delete from queue_pg.batch_counters c
  where c.batch_id = any (v_changed) and not exists (select from queue_pg.batches b where b.id = c.batch_id);
  -- Not their sum: retries are negative, and jobs that failed in an earlier run still count.
  select array_agg(distinct c.batch_id) into v_failed
  from queue_pg.batch_counters c where c.batch_id = any (v_ids) and c.failed > 0;
  for v_batch in
    with taken as (
      delete from queue_pg.batch_counters c where c.batch_id = any (v_ids)
      returning c.batch_id, c.completed, c.failed, c.cancelled
    ),
    summed as (
      select t.batch_id, sum(t.completed) as completed, sum(t.failed) as failed, sum(t.cancelled) as cancelled
      from taken t group by t.batch_id
    )
    update queue_pg.batches b
    set completed = b.completed + s.completed, failed = b.failed + s.failed, cancelled = b.cancelled + s.cancelled
    from summed s where b.id = s.batch_id
    returning b.*
  loop
    if v_batch.on_first_failed is not null and v_batch.first_failed_at is null and v_batch.id = any (v_failed)
      and v_batch.finished_at is null then
      perform queue_pg.tell_first_failed(v_batch.id);
    end if;
    if v_batch.state = 'closed' and v_batch.completed + v_batch.failed + v_batch.cancelled >= v_batch.total then
      perform queue_pg.end_batch(v_batch.id);
      v_ended := v_ended + 1;
    end if;
  end loop;
  return v_ended;
end
$$;

comment on function queue_pg.settle_batches is
  'Folds the counters of batches and ends those of which nothing is left, with their callbacks; returns how many.';

-- Closed batches that wait for jobs which do not exist, because somebody deleted rows by hand, get the total that is
-- there, and so their end. The rows are locked before anything is counted: see rejoin_batch().
create or replace function queue_pg.mend_batches() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[];
begin
  select array_agg(l.id) into v_ids
  from (
    select b.id from queue_pg.batches b
    where b.state = 'closed' and not exists (select from queue_pg.jobs j where j.batch_id = b.id)
    order by b.id limit 1000 for update of b skip locked) l;
  with mended as (
    update queue_pg.batches b set total = p.total - p.unfinished
    from queue_pg.batch_progress p
    where b.id = any (v_ids) and b.state = 'closed' and p.id = b.id and p.unfinished > 0
      and not exists (select from queue_pg.jobs j where j.batch_id = b.id)
    returning b.id
  )
  insert into queue_pg.batch_counters (batch_id) select m.id from mended m;
end
$$;
