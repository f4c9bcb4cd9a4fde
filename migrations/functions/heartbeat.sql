-- Keeping a lease.

-- Extends the leases that still stand and returns them; an id that does not come back is lost: reaped, cancelled or
-- claimed by another. One statement for all running jobs of a worker. A lease is never extended beyond the attempt's
-- timeout plus one lease, so a hung worker that still heartbeats cannot hold a job for ever.
-- Rows are locked in the order of their ids, as everywhere; "running" is tested as in finish().
create or replace function queue_pg.heartbeat(ids uuid[], lease_tokens bigint[], lease interval default null)
returns table (id uuid, lease_expires_at timestamptz)
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
  -- Read apart: before PostgreSQL 18 the price of a sequential scan that is switched off but cannot be avoided is so high
  -- that all plans of a statement look the same, and the worst may be taken.
  v_settings queue_pg.settings;
begin
  select s.* into v_settings from queue_pg.settings s;
  if lease is not null and (lease < '100 milliseconds' or lease > '1 day') then
    perform queue_pg.raise_invalid('lease', 'must be from 100 ms to 1 day');
  end if;
  return query
  with held as materialized (
    select j.id,
      coalesce(
        heartbeat.lease, (select q.lease from queue_pg.queues q where q.org = j.org and q.queue = j.queue),
        v_settings.lease) as lease,
      j.claimed_at + coalesce(
        j.timeout, (select k.timeout from queue_pg.kinds k where k.kind = j.kind), v_settings.timeout) as times_out_at
    from unnest(ids, lease_tokens) as i (id, lease_token)
    join queue_pg.jobs j on j.id between i.id and i.id
    where j.lease_expires_at is not null and j.lease_token = i.lease_token
    order by i.id
    for no key update of j
  )
  update queue_pg.jobs j
  set lease_expires_at = least(v_now + held.lease, held.times_out_at + held.lease)
  from held
  where j.id between held.id and held.id and held.times_out_at + held.lease > v_now
  returning j.id, j.lease_expires_at;
end
$$;

comment on function queue_pg.heartbeat is 'Extends leases; returns those still held.';

-- The leases that a worker has, whether it has heard of them or not, and how long it has had each. By the leases of all
-- workers, which are few beside the jobs; those that are long over are left out, and with them the entries of old ones.
create or replace function queue_pg.leases_of(worker_id text)
returns table (id uuid, lease_token bigint, age interval)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
begin
  return query
  select j.id, j.lease_token::bigint, v_now - j.claimed_at from queue_pg.jobs j
  where j.state = 'running' and j.lease_expires_at > v_now - interval '1 minute' and j.worker_id = leases_of.worker_id;
end
$$;

comment on function queue_pg.leases_of is 'The leases that a worker has, and how long it has had each.';

-- Which of these leases still stand. Read-only and cheap, for noticing a cancel within a second without NOTIFY.
create or replace function queue_pg.held(ids uuid[], lease_tokens bigint[]) returns table (id uuid)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
  return query
  select j.id from unnest(ids, lease_tokens) as i (id, lease_token)
  join queue_pg.jobs j on j.id between i.id and i.id
  where j.lease_expires_at is not null and j.lease_token = i.lease_token;
end
$$;

comment on function queue_pg.held is 'Which of these leases still stand.';
