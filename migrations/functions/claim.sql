-- Handing out work.

-- Leases up to `max_jobs` queued jobs to `worker_id` and returns them, payload and metadata as JSON text: a document
-- that the client cannot decode then fails alone instead of spoiling the batch.
--
-- A lane is one (queue, org). Lanes that have work are visited in random order, each for its fair share first and then
-- for what is left, so neither a queue nor a tenant can starve another; inside a lane the order is
-- priority desc, run_at, id, which is the order of index jobs_claim, so a claim reads just the rows it takes.
-- SKIP LOCKED sits in a MATERIALIZED CTE: a sub-select under IN may be run again per row and claim more than its LIMIT.
-- The SETs pin the plan to that index whatever the statistics say; stale ones turn this statement quadratic. A pinned
-- plan looks expensive to the planner, so JIT has to be off as well: compiling would cost more than all the rest.
-- `lease` null: the queue's, else settings.lease. `kinds` null: any kind. `only_org` null: any tenant.
create or replace function queue_pg.claim(
  worker_id text,
  queues text[],
  kinds text[] default null,
  max_jobs integer default 1,
  lease interval default null,
  only_org text default null)
returns table (
  id uuid, org text, queue text, kind text, payload text, metadata text, attempt integer, max_attempts integer,
  lease_token bigint, lease_expires_at timestamptz, lease_seconds double precision, timeout_seconds double precision,
  tags text[], traceparent text, created_at timestamptz)
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
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_settings queue_pg.settings;
  v_lane record;
  v_queue text;
  v_org text;
  v_after text := coalesce(current_setting('queue_pg.claim_after', true), '');
  v_wrapped boolean;
  v_full boolean := false;
  v_lane_queues text[] := '{}';
  v_lane_orgs text[] := '{}';
  v_lease interval;
  v_wanted integer := least(greatest(coalesce(max_jobs, 1), 0), 10000);
  v_share integer;
  v_taken integer;
  v_pass integer;
begin
  if lease is not null and (lease < '100 milliseconds' or lease > '1 day') then
    perform queue_pg.raise_invalid('lease', 'must be from 100 ms to 1 day');
  end if;
  select s.* into v_settings from queue_pg.settings s;

  for v_queue in select distinct q from unnest(queues) q where q is not null loop
    v_org := coalesce(only_org, v_after);
    v_wrapped := v_after = '';
    loop
      -- One index probe finds the next tenant with work in this queue.
      if only_org is null then
        select j.org into v_org from queue_pg.jobs j
        where j.state = 'queued' and j.queue = v_queue and j.org > v_org
        order by j.org limit 1;
        if not found then
          exit when v_wrapped;
          v_wrapped := true;
          v_org := '';
          continue;
        end if;
        exit when v_wrapped and v_org > v_after and v_after <> '';
      end if;
      if not exists (
        select from queue_pg.queues q where q.org = v_org and q.queue = v_queue and q.paused_until > v_now
      ) then
        v_lane_queues := v_lane_queues || v_queue;
        v_lane_orgs := v_lane_orgs || v_org;
      end if;
      v_full := cardinality(v_lane_orgs) >= 500;
      exit when only_org is not null or v_full;
    end loop;
  end loop;
  if only_org is null and (v_full or v_after <> '') then
    -- More lanes than one claim looks at: the session's next claim goes on where this one stopped.
    perform set_config('queue_pg.claim_after', case when v_full then v_org else '' end, false);
  end if;
  if cardinality(v_lane_queues) = 0 then
    return;
  end if;

  for v_pass in 1..2 loop
    v_share := ceil(v_wanted::numeric / cardinality(v_lane_queues));
    for v_lane in
      select l.queue, l.org from unnest(v_lane_queues, v_lane_orgs) as l (queue, org) order by random()
    loop
      exit when v_wanted <= 0;
      v_lease := coalesce(
        lease, (select q.lease from queue_pg.queues q where q.org = v_lane.org and q.queue = v_lane.queue),
        v_settings.lease);
      return query
      with picked as materialized (
        select j.id
        from queue_pg.jobs j
        where j.state = 'queued' and j.queue = v_lane.queue and j.org = v_lane.org
          and (kinds is null or j.kind = any (kinds))
          and (j.expires_at is null or j.expires_at > v_now)
        order by j.queue, j.org, j.priority desc, j.run_at, j.id
        limit case when v_pass = 1 then v_share else v_wanted end
        for update skip locked
      )
      update queue_pg.jobs j
      set state = 'running', attempt = j.attempt + 1, lease_token = j.lease_token + 1, worker_id = claim.worker_id,
        claimed_at = v_now, lease_expires_at = v_now + v_lease
      from picked
      where j.id = picked.id
      returning
        j.id, j.org, j.queue, j.kind, j.payload::text, j.metadata::text, j.attempt,
        coalesce(
          j.max_attempts, (select k.max_attempts from queue_pg.kinds k where k.kind = j.kind), v_settings.max_attempts),
        j.lease_token, j.lease_expires_at, extract(epoch from v_lease)::double precision,
        extract(epoch from coalesce(
          j.timeout, (select k.timeout from queue_pg.kinds k where k.kind = j.kind), v_settings.timeout
        ))::double precision,
        j.tags, j.traceparent, j.created_at;
      get diagnostics v_taken = row_count;
      v_wanted := v_wanted - v_taken;
    end loop;
    exit when v_wanted <= 0 or cardinality(v_lane_queues) = 1;
  end loop;
end
$$;

comment on function queue_pg.claim is
  'Leases up to max_jobs queued jobs to a worker: select * from queue_pg.claim(''me'', ''{default}'', max_jobs => 5).';
