-- Handing out work.
--
-- A lane is one (queue, org). Lanes that have work are visited in random order, each for its fair share first and then
-- for what is left, so neither a queue nor a tenant can starve another; inside a lane the order is
-- priority desc, run_at, id, which is the order of index jobs_claim, so a claim reads just the rows it takes. Where the next
-- jobs of lanes differ in cost, shares are by cost, as limited.sql has them.
--
-- Claimed jobs leave dead entries at the head of their lane until the next vacuum, and for hours when a long transaction
-- elsewhere keeps them; each claim would walk over all of them again. So a claim counts the index pages it read. When
-- they are many more than the jobs it took fill, the session remembers for the lane the last key it took, the floor, and
-- starts its next claims there: what comes before is taken or dead. Higher priorities than the floor's are looked at
-- all the same. What else gets in before the floor (a transaction that commits late, a job handed back) is found by
-- sweeping the lane from its head again, so seldom that it takes 5 % of the time at most.
--
-- The SETs pin plans to the index whatever the statistics say; stale ones turn these statements quadratic. A pinned plan
-- looks expensive to the planner, so JIT has to be off as well: compiling would cost more than all the rest. And rows are
-- looked up by "id between x.id and x.id", here and in all functions: with "id = x.id" a planner that takes the table for
-- empty, as after a vacuum while the queue was short, reads its whole primary key in order and looks for x in each row.

-- Locks up to `wanted` claimable jobs of one lane and returns their ids in order, with the key of the last one.
-- `floor` null: of the whole lane; else [priority, run_at, id, ...]: of what comes behind it, or of the priorities above.
-- SKIP LOCKED sits in a FROM of its own: a sub-select under IN may be run again per row and lock more than its LIMIT.
create or replace function queue_pg.pick(
  queue text, org text, kinds text[], wanted integer, floor jsonb, above boolean, out ids uuid[], out last_key jsonb)
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
declare
  v_now timestamptz := queue_pg.now();
  v_priority integer := floor ->> 0;
  v_run_at timestamptz;
  v_id uuid;
  v_priorities smallint[];
  v_run_ats timestamptz[];
begin
  if floor is null then
    select array_agg(p.id), array_agg(p.priority), array_agg(p.run_at) into ids, v_priorities, v_run_ats
    from (
      select j.id, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = pick.queue and j.org = pick.org
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
  elsif above then
    select array_agg(p.id), array_agg(p.priority), array_agg(p.run_at) into ids, v_priorities, v_run_ats
    from (
      select j.id, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = pick.queue and j.org = pick.org and j.priority > v_priority
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
  else
    v_run_at := floor ->> 1;
    v_id := floor ->> 2;
    select array_agg(p.id), array_agg(p.priority), array_agg(p.run_at) into ids, v_priorities, v_run_ats
    from (
      select j.id, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = pick.queue and j.org = pick.org
        and j.priority = v_priority and (j.run_at, j.id) > (v_run_at, v_id)
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
    if coalesce(cardinality(ids), 0) < wanted then
      select ids || array_agg(p.id), v_priorities || array_agg(p.priority), v_run_ats || array_agg(p.run_at)
      into ids, v_priorities, v_run_ats
      from (
        select j.id, j.priority, j.run_at::timestamptz from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = pick.queue and j.org = pick.org and j.priority < v_priority
          and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        order by j.queue, j.org, j.priority desc, j.run_at, j.id
        limit wanted - coalesce(cardinality(ids), 0) for update skip locked) p;
    end if;
  end if;
  ids := coalesce(ids, '{}');
  if ids <> '{}' then
    last_key := jsonb_build_array(
      v_priorities[cardinality(ids)], v_run_ats[cardinality(ids)], ids[cardinality(ids)]);
  end if;
end
$$;

-- Locks up to `wanted` claimable jobs of one lane, and returns their ids, the key behind which there may be more (null:
-- there are none), and the lane's new floor. A floor is [priority, run_at, id, when to sweep, when to look above].
create or replace function queue_pg.pick_from_lane(
  queue text, org text, kinds text[], wanted integer, floor jsonb, out ids uuid[], out rest jsonb, out new_floor jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_index constant oid := 'queue_pg.jobs_claim'::regclass;
  -- Index pages that a claim may read without being called wasteful, besides those of the jobs that it took.
  v_fair constant integer := 40;
  -- Whatever a walk took, be it because the machine stood still.
  v_longest constant interval := '10 seconds';
  v_now timestamptz := queue_pg.now();
  v_started timestamptz := clock_timestamp();
  v_pages bigint := pg_stat_get_xact_blocks_fetched(v_index);
  v_sweep_at jsonb := floor -> 3;
  v_above_at jsonb := coalesce(floor -> 4, '0');
  v_pick record;
  v_key jsonb;
begin
  ids := '{}';
  -- A floor ahead of the clock is one from before the clock went back.
  if floor is null or extract(epoch from v_now) >= (floor ->> 3)::numeric or (floor ->> 1)::timestamptz > v_now then
    select p.* into v_pick from queue_pg.pick(queue, org, kinds, wanted, null, null) p;
    ids := v_pick.ids;
    if pg_stat_get_xact_blocks_fetched(v_index) - v_pages <= v_fair + cardinality(ids) / 20 then
      rest := case when cardinality(ids) = wanted then v_pick.last_key end;
      return;
    end if;
    v_sweep_at := to_jsonb(extract(epoch from v_now + least(20 * (clock_timestamp() - v_started), v_longest)));
  else
    if extract(epoch from v_now) >= (floor ->> 4)::numeric then
      select p.* into v_pick from queue_pg.pick(queue, org, kinds, wanted, floor, true) p;
      ids := v_pick.ids;
      v_above_at := case
        when pg_stat_get_xact_blocks_fetched(v_index) - v_pages <= v_fair + cardinality(ids) / 20 then '0'::jsonb
        else to_jsonb(extract(epoch from v_now + least(20 * (clock_timestamp() - v_started), v_longest))) end;
      v_pick.last_key := null;
    end if;
    if cardinality(ids) < wanted then
      select p.* into v_pick from queue_pg.pick(queue, org, kinds, wanted - cardinality(ids), floor, false) p;
      ids := ids || v_pick.ids;
    end if;
  end if;
  -- Nothing taken and nothing known: most jobs have priority 0.
  v_key := coalesce(v_pick.last_key, floor, jsonb_build_array(0, v_now, '00000000-0000-0000-0000-000000000000'));
  -- Of the priorities above, more may be left than was wanted: they come first, so this claim goes no further.
  rest := case when cardinality(ids) = wanted then v_pick.last_key end;
  -- While jobs flow in, transactions overtake each other: the floor stays a moment behind.
  if (v_key ->> 1)::timestamptz > v_now - interval '250 milliseconds' then
    v_key := jsonb_set(v_key, '{1}', to_jsonb(v_now - interval '250 milliseconds'));
  end if;
  new_floor := jsonb_build_array(v_key -> 0, v_key -> 1, v_key -> 2, v_sweep_at, v_above_at);
end
$$;

-- Locks up to `wanted` claimable jobs of these queues and returns their ids, lane by lane.
create or replace function queue_pg.pick_from_queues(queues text[], kinds text[], wanted integer, only_org text)
returns uuid[]
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
  v_index constant oid := 'queue_pg.jobs_claim'::regclass;
  v_after text := coalesce(current_setting('queue_pg.claim_after', true), '');
  v_keyed_index constant oid := 'queue_pg.jobs_keyed'::regclass;
  v_keyed_pages bigint;
  -- Floors are of one kind of claim: another may still want what this one has passed over.
  v_for text := hashtext(coalesce(kinds::text, '') || E'\x1f' || coalesce(only_org, ''));
  v_floors jsonb := coalesce(nullif(current_setting('queue_pg.floors', true), '')::jsonb -> v_for, '{}');
  v_remembered jsonb := v_floors;
  v_pages bigint;
  v_queue text;
  v_org text;
  v_known text;
  v_cost integer;
  v_known_cost integer;
  -- Lanes that limited.sql has floors of: not probed either.
  v_states jsonb := coalesce(nullif(current_setting('queue_pg.keyed', true), '')::jsonb -> v_for, '{}');
  v_paused boolean;
  -- Of limited queues, and jobs with keys: limited.sql takes those.
  v_limited boolean;
  v_keyed boolean;
  v_limited_queues text[] := '{}';
  v_limited_orgs text[] := '{}';
  -- Tenants that have been probed for already, and the costs of their next jobs.
  v_seen text[] := '{}';
  v_seen_costs integer[] := '{}';
  v_wrapped boolean;
  -- Per queue, so that one with very many tenants leaves room for the others.
  v_most_lanes integer := greatest(500 / greatest(cardinality(queues), 1), 1);
  v_full boolean := false;
  v_lanes integer;
  v_stopped_at text;
  v_stopped_wrapped boolean;
  v_lane_queues text[] := '{}';
  v_lane_orgs text[] := '{}';
  -- Null: not known.
  v_lane_costs integer[] := '{}';
  -- Per lane: behind which key there may be more.
  v_rests jsonb[] := '{}';
  v_lane record;
  v_pick record;
  v_ids uuid[] := '{}';
  v_share integer;
  v_limit integer;
begin
  if cardinality(queues) = 1 and only_org is null and v_after = '' and v_floors = '{}'
    and v_states = '{}'
  then
    -- Mostly a worker serves one queue, and it has jobs of one tenant or of none: no list of lanes is needed for that.
    v_queue := queues[1];
    v_pages := pg_stat_get_xact_blocks_fetched(v_index);
    v_keyed_pages := pg_stat_get_xact_blocks_fetched(v_keyed_index);
    select l.org, l.cost, n.org, n.cost,
      exists (select from queue_pg.jobs j where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue)
    into v_org, v_cost, v_known, v_known_cost, v_keyed
    from (select) one left join (
      select j.org, j.cost from queue_pg.jobs j where j.state = 'queued' and j.limit_key is null and j.queue = v_queue
      order by j.org limit 1) l on true
    left join lateral (
      select j.org, j.cost from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = v_queue and j.org > l.org
      order by j.org limit 1) n on true;
    if v_org is not null then
      select q.paused_until > v_now, q.limited into v_paused, v_limited
      from queue_pg.queues q where q.org = v_org and q.queue = v_queue;
    end if;
    if not v_keyed and pg_stat_get_xact_blocks_fetched(v_keyed_index) - v_keyed_pages > 40 then
      -- Nothing but dead entries: the session remembers it for a while.
      v_keyed := queue_pg.has_keyed(queues, v_for);
    end if;
    if v_keyed or v_limited then
      null;
    elsif v_org is null and pg_stat_get_xact_blocks_fetched(v_index) - v_pages <= 40 then
      return '{}';
    elsif v_known is null and v_org is not null then
      if v_paused then
        return '{}';
      end if;
      select p.* into v_pick from queue_pg.pick_from_lane(v_queue, v_org, kinds, wanted, null) p;
      if v_pick.new_floor is not null then
        perform set_config('queue_pg.floors', jsonb_build_object(
          v_for, jsonb_build_object(v_queue, jsonb_build_object(v_org, v_pick.new_floor)))::text, false);
      end if;
      return v_pick.ids;
    end if;
    v_seen := array_remove(array[v_org, v_known], null);
    v_seen_costs := array[v_cost, v_known_cost];
  end if;

  for v_queue in select distinct q from unnest(queues) q where q is not null loop
    v_org := coalesce(only_org, v_after);
    v_wrapped := v_after = '';
    v_pages := pg_stat_get_xact_blocks_fetched(v_index);
    v_lanes := cardinality(v_lane_queues) + cardinality(v_limited_queues);
    loop
      v_cost := null;
      -- One index probe finds the next tenant with work in this queue; a lane with a floor is not probed, but visited.
      if cardinality(v_seen) > 0 then
        v_org := v_seen[1];
        v_cost := v_seen_costs[1];
        v_seen := v_seen[2:];
        v_seen_costs := v_seen_costs[2:];
      elsif only_org is null then
        select min(o) into v_known from jsonb_object_keys(v_floors -> v_queue) o where o > v_org;
        if v_states ? v_queue then
          select least(v_known, min(o.key)) into v_known
          from jsonb_each(v_states -> v_queue -> 'lanes') o where o.key > v_org and o.value ? '';
        end if;
        if v_known is null then
          select j.org, j.cost into v_org, v_cost from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is null and j.queue = v_queue and j.org > v_org
          order by j.org limit 1;
        else
          select j.org, j.cost into v_org, v_cost from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is null and j.queue = v_queue and j.org > v_org and j.org < v_known
          order by j.org limit 1;
        end if;
        v_org := coalesce(v_org, v_known);
        if v_org is null then
          exit when v_wrapped;
          v_wrapped := true;
          v_org := '';
          continue;
        end if;
        exit when v_wrapped and v_org > v_after and v_after <> '';
        if v_cost is null then
          v_cost := round((v_states -> v_queue -> 'lanes' -> v_org -> '' ->> 'cost')::numeric);
        end if;
      end if;
      select q.paused_until > v_now, q.limited into v_paused, v_limited
      from queue_pg.queues q where q.org = v_org and q.queue = v_queue;
      if v_paused then
        null;
      elsif v_limited then
        v_limited_queues := v_limited_queues || v_queue;
        v_limited_orgs := v_limited_orgs || v_org;
      else
        v_lane_queues := v_lane_queues || v_queue;
        v_lane_orgs := v_lane_orgs || v_org;
        v_lane_costs := v_lane_costs || v_cost;
      end if;
      exit when only_org is not null;
      if cardinality(v_lane_queues) + cardinality(v_limited_queues) - v_lanes >= v_most_lanes then
        -- All queues go on from one tenant: the first at which one of them stopped, or the tenants between are skipped.
        if not v_full or (v_wrapped, v_org) < (v_stopped_wrapped, v_stopped_at) then
          v_stopped_wrapped := v_wrapped;
          v_stopped_at := v_org;
        end if;
        v_full := true;
        exit;
      end if;
    end loop;
    if cardinality(v_lane_queues) + cardinality(v_limited_queues) = v_lanes
      and pg_stat_get_xact_blocks_fetched(v_index) - v_pages > 40
    then
      -- Nothing but dead entries, of a tenant that they do not tell; most jobs are of this one. Visiting its lane sets
      -- its floor, so that the next claim need not walk over them again.
      v_org := coalesce(only_org, 'default');
      select q.paused_until > v_now, q.limited into v_paused, v_limited
      from queue_pg.queues q where q.org = v_org and q.queue = v_queue;
      if v_paused then
        null;
      elsif v_limited then
        v_limited_queues := v_limited_queues || v_queue;
        v_limited_orgs := v_limited_orgs || v_org;
      else
        v_lane_queues := v_lane_queues || v_queue;
        v_lane_orgs := v_lane_orgs || v_org;
        v_lane_costs := v_lane_costs || null::integer;
      end if;
    end if;
  end loop;
  if only_org is null and (v_full or v_after <> '') then
    -- More lanes than one claim looks at: the session's next claim goes on where this one stopped.
    perform set_config('queue_pg.claim_after', case when v_full then v_stopped_at else '' end, false);
  end if;
  if cardinality(v_lane_costs) > 1
    and (select min(c) is distinct from max(c) from unnest(v_lane_costs) c)
  then
    -- Shares are of cost: limited.sql gives them.
    v_limited_queues := v_limited_queues || v_lane_queues;
    v_limited_orgs := v_limited_orgs || v_lane_orgs;
    v_lane_queues := '{}';
  end if;
  v_keyed := queue_pg.has_keyed(queues, v_for);
  if v_keyed or v_limited_queues <> '{}' then
    v_ids := queue_pg.pick_limited(
      queues, kinds, wanted, only_org, v_limited_queues, v_limited_orgs,
      case when v_lane_queues = '{}' then 0
        else (select sum(1.0 / greatest(coalesce(c, 1), 1)) from unnest(v_lane_costs) c) end, '{}', v_for);
  end if;
  if cardinality(v_lane_queues) = 0 then
    return v_ids;
  end if;

  v_share := ceil((wanted - cardinality(v_ids))::numeric / cardinality(v_lane_queues));
  for v_pass in 1..least(cardinality(v_lane_queues), 2) loop
    for v_lane in
      select l.queue, l.org, l.nr from unnest(v_lane_queues, v_lane_orgs) with ordinality as l (queue, org, nr)
      order by random()
    loop
      v_limit := wanted - cardinality(v_ids);
      exit when v_limit <= 0;
      if v_pass = 1 then
        select p.* into v_pick from queue_pg.pick_from_lane(
          v_lane.queue, v_lane.org, kinds, least(v_limit, v_share), v_floors -> v_lane.queue -> v_lane.org) p;
        v_rests[v_lane.nr] := v_pick.rest;
        if v_pick.new_floor is not null then
          v_floors := v_floors || jsonb_build_object(
            v_lane.queue, coalesce(v_floors -> v_lane.queue, '{}') || jsonb_build_object(v_lane.org, v_pick.new_floor));
        elsif v_floors <> '{}' then
          v_floors := v_floors #- array[v_lane.queue, v_lane.org];
        end if;
        v_ids := v_ids || v_pick.ids;
      elsif v_rests[v_lane.nr] is not null then
        -- Behind what the first visit took: rows that are locked by ourselves would not be skipped.
        select p.ids into v_pick from queue_pg.pick(
          v_lane.queue, v_lane.org, kinds, v_limit, v_rests[v_lane.nr], false) p;
        v_ids := v_ids || v_pick.ids;
      end if;
    end loop;
    exit when cardinality(v_ids) >= wanted;
  end loop;
  if v_floors is distinct from v_remembered then
    perform set_config('queue_pg.floors', jsonb_build_object(v_for, v_floors)::text, false);
  end if;
  if cardinality(v_ids) < wanted and (v_keyed or v_limited_queues <> '{}') then
    -- The ordinary lanes had less than their share.
    v_ids := v_ids || queue_pg.pick_limited(
      queues, kinds, wanted - cardinality(v_ids), only_org, v_limited_queues, v_limited_orgs, 0, v_ids, v_for);
  end if;
  return v_ids;
end
$$;

-- Leases up to `max_jobs` queued jobs to `worker_id` and returns them, payload and metadata as JSON text: a document
-- that the client cannot decode then fails alone instead of spoiling the batch.
-- `lease` null: the queue's, else settings.lease. `kinds` null: any kind. `only_org` null: any tenant.
-- `arm` true: when nothing is found, asks for a NOTIFY from the next INSERT into these queues, and looks once more;
-- false: the caller looks again by itself within milliseconds and needs none; null: leaves that as it is.
create or replace function queue_pg.claim(
  worker_id text,
  queues text[],
  kinds text[] default null,
  max_jobs integer default 1,
  lease interval default null,
  only_org text default null,
  arm boolean default null)
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
  v_now timestamptz;
  v_lease interval;
  v_max_attempts integer;
  v_timeout interval;
  v_wanted integer := least(greatest(coalesce(max_jobs, 1), 0), 10000);
  v_ids uuid[];
  v_observed boolean;
  -- Mostly none has its own: look-ups for each job saved.
  v_own_leases boolean;
  v_own_limits boolean;
begin
  if lease is not null and (lease < '100 milliseconds' or lease > '1 day') then
    perform queue_pg.raise_invalid('lease', 'must be from 100 ms to 1 day');
  end if;
  if not arm then
    perform queue_pg.disarm(queues);
  end if;
  v_ids := queue_pg.pick_from_queues(queues, kinds, v_wanted, only_org);
  if arm and v_ids = '{}' and v_wanted > 0 then
    perform queue_pg.arm(queues);
    v_ids := queue_pg.pick_from_queues(queues, kinds, v_wanted, only_org);
  end if;
  if v_ids = '{}' then
    return;
  end if;

  v_now := queue_pg.now();
  v_observed := queue_pg.is_observed();
  select s.lease, s.max_attempts, s.timeout,
    claim.lease is null and exists (select from queue_pg.queues q where q.lease is not null),
    exists (select from queue_pg.kinds k where k.max_attempts is not null or k.timeout is not null)
  into v_lease, v_max_attempts, v_timeout, v_own_leases, v_own_limits
  from queue_pg.settings s;
  -- The ends of the ranges of a row made by hand must not stop the others: see the domains of the columns.
  -- An attempt's limits are settled here, so that all who deal with it (heartbeat, reaper, worker) mean the same.
  return query
  update queue_pg.jobs j
  set state = 'running', attempt = least(j.attempt, 999999999) + 1,
    lease_token = least(j.lease_token, 999999999999999999) + 1, worker_id = claim.worker_id, claimed_at = v_now,
    lease_expires_at = v_now + coalesce(
      lease,
      case when v_own_leases then (select q.lease from queue_pg.queues q where q.org = j.org and q.queue = j.queue) end,
      v_lease),
    max_attempts = coalesce(
      j.max_attempts, case when v_own_limits then (select k.max_attempts from queue_pg.kinds k where k.kind = j.kind) end,
      v_max_attempts),
    timeout = coalesce(
      j.timeout, case when v_own_limits then (select k.timeout from queue_pg.kinds k where k.kind = j.kind) end,
      v_timeout)
  from unnest(v_ids) as picked (id)
  where j.id between picked.id and picked.id
  returning
    -- The id, and mostly nothing else: a job that somebody follows tells of its start.
    case when v_observed or j.followed then queue_pg.tell_started(
        j.id, j.org::text, j.queue::text, j.kind::text,
        (greatest(j.last_event_seq, 1) + (j.promoted_at is not null)::integer + 1)::integer, j.attempt::integer, j.worker_id,
        j.followed)
      else j.id end,
    j.org::text, j.queue::text, j.kind::text, j.payload::text, j.metadata::text, j.attempt::integer,
    j.max_attempts::integer, j.lease_token::bigint, j.lease_expires_at,
    extract(epoch from j.lease_expires_at - v_now)::double precision,
    extract(epoch from j.timeout)::double precision, j.tags::text[], j.traceparent::text, j.created_at::timestamptz;
end
$$;

comment on function queue_pg.claim is
  'Leases up to max_jobs queued jobs to a worker: select * from queue_pg.claim(''me'', ''{default}'', max_jobs => 5).';
