-- Who works, and what can be run.

create or replace function queue_pg.register_worker(
  id text, host text, pid integer, version text, queues text[], kinds text[], capacity integer) returns void
language sql as $$
  insert into queue_pg.workers as w (id, host, pid, version, queues, kinds, capacity)
  values (register_worker.id, register_worker.host, register_worker.pid, register_worker.version,
    register_worker.queues, register_worker.kinds, register_worker.capacity)
  on conflict on constraint workers_pkey do update set
    host = excluded.host, pid = excluded.pid, version = excluded.version, queues = excluded.queues,
    kinds = excluded.kinds, capacity = excluded.capacity, stopping = false, heartbeat_at = queue_pg.now()
$$;

comment on function queue_pg.register_worker is 'Adds or refreshes the row of a worker process.';

-- Returns how many live workers serve one of its queues, itself included, so that a fleet can share out its polling.
-- Null when the row is gone: the worker was away for an hour and registers again.
create or replace function queue_pg.worker_heartbeat(
  id text, active integer, processed bigint, failed bigint, stopping boolean default false) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_queues text[];
begin
  update queue_pg.workers w set
    active = worker_heartbeat.active, processed = worker_heartbeat.processed, failed = worker_heartbeat.failed,
    stopping = worker_heartbeat.stopping, heartbeat_at = v_now
  where w.id = worker_heartbeat.id
  returning w.queues into v_queues;
  if not found then
    return null;
  end if;
  return (
    select count(*) from queue_pg.workers w
    where w.id = worker_heartbeat.id
      or (w.queues && v_queues and not w.stopping and w.heartbeat_at > v_now - interval '60 seconds'));
end
$$;

comment on function queue_pg.worker_heartbeat is
  'Reports a worker''s counters; answers how many live workers share its queues. Null: its row is gone, register again.';

create or replace function queue_pg.forget_worker(id text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_queues text[];
begin
  delete from queue_pg.workers w where w.id = forget_worker.id returning w.queues into v_queues;
  perform queue_pg.disarm_unserved(v_queues);
end
$$;

comment on function queue_pg.forget_worker is 'Removes the row of a worker that has ended.';

-- What an ended worker has armed would have every INSERT notify nobody. The API's listeners have no row: should one
-- wait for such a queue, it arms it again at its next look.
create or replace function queue_pg.disarm_unserved(queues text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select queue_pg.disarm(array(
    select unnest(queues) except
    select unnest(w.queues) from queue_pg.workers w
    where not w.stopping and w.heartbeat_at > queue_pg.now() - interval '60 seconds'))
$$;

-- Tells which kinds exist and how they are to be run. `kinds` is an array of {kind, schema, max_attempts,
-- timeout_seconds, retry_base_seconds, retry_cap_seconds, description}. What is unchanged is not written, so a fleet
-- that starts at once does not contend.
create or replace function queue_pg.register_kinds(kinds jsonb) returns void
language sql as $$
  insert into queue_pg.kinds as k (kind, schema, max_attempts, timeout, retry_base, retry_cap, description)
  select distinct on (r.kind) r.kind, nullif(r.schema, 'null'), r.max_attempts, r.timeout_seconds * interval '1 second',
    r.retry_base_seconds * interval '1 second', r.retry_cap_seconds * interval '1 second', r.description
  from jsonb_to_recordset(register_kinds.kinds) as r (
    kind text, schema jsonb, max_attempts integer, timeout_seconds double precision,
    retry_base_seconds double precision, retry_cap_seconds double precision, description text)
  order by r.kind
  on conflict on constraint kinds_pkey do update set
    schema = excluded.schema, max_attempts = excluded.max_attempts, timeout = excluded.timeout,
    retry_base = excluded.retry_base, retry_cap = excluded.retry_cap, description = excluded.description
  where (k.schema, k.max_attempts, k.timeout, k.retry_base, k.retry_cap, k.description)
    is distinct from (excluded.schema, excluded.max_attempts, excluded.timeout, excluded.retry_base,
      excluded.retry_cap, excluded.description)
$$;

comment on function queue_pg.register_kinds is 'Adds or refreshes kinds with their payload schema and retry policy.';
