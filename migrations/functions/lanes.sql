-- Reading one limited lane: a (queue, org, limit_key), or a (queue, org) without a key; limited.sql has their turns.
--
-- As in claim.sql a lane behind dead entries gets a floor, where later claims of the session start. A lane's state is
-- {"key": [priority, run_at, id], "sweep": when to start at the head again, "above": when to look above the floor's
-- priority, "cost": of an average job that was taken, "aged": when to look for the longest waiting again}.

-- Locks up to `wanted` claimable jobs of a lane and returns them in order. `key` null: of the whole lane; else
-- [priority, run_at, id]: of what comes behind it, or with `above` of the higher priorities. `taken` are jobs that this
-- transaction has locked already, which SKIP LOCKED would not skip.
create or replace function queue_pg.pick_lane(
  queue text, org text, limit_key text, kinds text[], wanted integer, taken uuid[], key jsonb, above boolean,
  out ids uuid[], out costs integer[], out priorities smallint[], out run_ats timestamptz[])
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
  -- Below every priority: of all of them.
  v_priority integer := coalesce(key ->> 0, '-40000');
  v_run_at timestamptz := key ->> 1;
  v_id uuid := key ->> 2;
begin
  if (key is null or above) and limit_key is null then
    select array_agg(p.id), array_agg(p.cost), array_agg(p.priority), array_agg(p.run_at)
    into ids, costs, priorities, run_ats
    from (
      select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = pick_lane.queue and j.org = pick_lane.org
        and j.priority > v_priority
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
  elsif key is null or above then
    select array_agg(p.id), array_agg(p.cost), array_agg(p.priority), array_agg(p.run_at)
    into ids, costs, priorities, run_ats
    from (
      select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is not null and j.queue = pick_lane.queue and j.org = pick_lane.org
        and j.limit_key = pick_lane.limit_key and j.priority > v_priority
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
  elsif limit_key is null then
    select array_agg(p.id), array_agg(p.cost), array_agg(p.priority), array_agg(p.run_at)
    into ids, costs, priorities, run_ats
    from (
      select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = pick_lane.queue and j.org = pick_lane.org
        and j.priority = v_priority and (j.run_at, j.id) > (v_run_at, v_id)
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
    if coalesce(cardinality(ids), 0) < wanted then
      select ids || array_agg(p.id), costs || array_agg(p.cost), priorities || array_agg(p.priority),
        run_ats || array_agg(p.run_at)
      into ids, costs, priorities, run_ats
      from (
        select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = pick_lane.queue and j.org = pick_lane.org
          and j.priority < v_priority
          and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
          and j.id <> all (taken)
        order by j.queue, j.org, j.priority desc, j.run_at, j.id
        limit wanted - coalesce(cardinality(ids), 0) for update skip locked) p;
    end if;
  else
    select array_agg(p.id), array_agg(p.cost), array_agg(p.priority), array_agg(p.run_at)
    into ids, costs, priorities, run_ats
    from (
      select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is not null and j.queue = pick_lane.queue and j.org = pick_lane.org
        and j.limit_key = pick_lane.limit_key and j.priority = v_priority and (j.run_at, j.id) > (v_run_at, v_id)
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id limit wanted for update skip locked) p;
    if coalesce(cardinality(ids), 0) < wanted then
      select ids || array_agg(p.id), costs || array_agg(p.cost), priorities || array_agg(p.priority),
        run_ats || array_agg(p.run_at)
      into ids, costs, priorities, run_ats
      from (
        select j.id, j.cost::integer, j.priority, j.run_at::timestamptz from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = pick_lane.queue and j.org = pick_lane.org
          and j.limit_key = pick_lane.limit_key and j.priority < v_priority
          and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
          and j.id <> all (taken)
        order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id
        limit wanted - coalesce(cardinality(ids), 0) for update skip locked) p;
    end if;
  end if;
  ids := coalesce(ids, '{}');
  costs := coalesce(costs, '{}');
end
$$;

-- Locks up to `wanted` jobs of a lane that fell due before a moment, the longest waiting first, whatever their
-- priorities: two probes for each priority that the lane has.
create or replace function queue_pg.pick_aged(
  queue text, org text, limit_key text, kinds text[], wanted integer, taken uuid[], before timestamptz,
  out ids uuid[], out costs integer[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_now timestamptz := queue_pg.now();
begin
  if limit_key is null then
    with recursive priorities as (
      (select j.priority from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = pick_aged.queue and j.org = pick_aged.org
        order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1)
      union all
      select n.priority
      from priorities p cross join lateral (
        select j.priority from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = pick_aged.queue and j.org = pick_aged.org
          and j.priority > p.priority
        order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1) n
    ),
    aged as (
      select a.id
      from priorities p cross join lateral (
        select j.id, j.run_at from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = pick_aged.queue and j.org = pick_aged.org
          and j.priority = p.priority and j.run_at < before
          and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
          and j.id <> all (taken)
        order by j.queue, j.org, j.priority desc, j.run_at, j.id limit wanted) a
      order by a.run_at, a.id limit wanted
    )
    select array_agg(l.id), array_agg(l.cost) into ids, costs
    from (
      select j.id, j.cost::integer from aged a join queue_pg.jobs j on j.id between a.id and a.id
      where j.state = 'queued' order by j.id for update of j skip locked) l;
  else
    with recursive priorities as (
      (select j.priority from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = pick_aged.queue and j.org = pick_aged.org
          and j.limit_key = pick_aged.limit_key
        order by j.queue desc, j.org desc, j.limit_key desc, j.priority, j.run_at desc, j.id desc limit 1)
      union all
      select n.priority
      from priorities p cross join lateral (
        select j.priority from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = pick_aged.queue and j.org = pick_aged.org
          and j.limit_key = pick_aged.limit_key and j.priority > p.priority
        order by j.queue desc, j.org desc, j.limit_key desc, j.priority, j.run_at desc, j.id desc limit 1) n
    ),
    aged as (
      select a.id
      from priorities p cross join lateral (
        select j.id, j.run_at from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = pick_aged.queue and j.org = pick_aged.org
          and j.limit_key = pick_aged.limit_key and j.priority = p.priority and j.run_at < before
          and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
          and j.id <> all (taken)
        order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id limit wanted) a
      order by a.run_at, a.id limit wanted
    )
    select array_agg(l.id), array_agg(l.cost) into ids, costs
    from (
      select j.id, j.cost::integer from aged a join queue_pg.jobs j on j.id between a.id and a.id
      where j.state = 'queued' order by j.id for update of j skip locked) l;
  end if;
  ids := coalesce(ids, '{}');
  costs := coalesce(costs, '{}');
end
$$;

-- The next of a sequence in [0, 1) that a session keeps under a name. Steps of the golden ratio fall into every part of
-- the range as often as its length says, sooner and more evenly than random numbers do; no two sessions start alike.
create or replace function queue_pg.next_turn(name text) returns double precision
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_last float8 := coalesce(nullif(current_setting(name, true), '')::float8, random());
  v_next float8 := v_last + 0.6180339887498949::float8;
begin
  v_next := v_next - floor(v_next);
  perform set_config(name, v_next::text, false);
  return v_next;
end
$$;

-- Reads up to `wanted` jobs of a lane: one in eight the longest waiting, if it has waited for `ageing`, the others in
-- order, and returns how many come before the floor that is to be, with the lane's state but for its floor.
create or replace function queue_pg.read_lane(
  queue text, org text, limit_key text, kinds text[], wanted integer, taken uuid[], state jsonb, ageing interval,
  out ids uuid[], out costs integer[], out priorities smallint[], out run_ats timestamptz[], out before integer,
  out floored boolean, out new_state jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_index constant oid := case when limit_key is null then 'queue_pg.jobs_claim' else 'queue_pg.jobs_keyed' end::regclass;
  v_aged_part constant float8 := 1 / 8.0;
  -- Index pages that a claim may read without being called wasteful, and a look for the longest waiting.
  v_fair constant integer := 40 + wanted / 20;
  v_fair_aged constant integer := 200 + wanted / 20;
  v_longest constant interval := '10 seconds';
  v_now timestamptz := queue_pg.now();
  v_started timestamptz := clock_timestamp();
  v_pages bigint;
  v_aged integer := 0;
  v_aged_at numeric := state ->> 'aged';
  v_sweep_at numeric := state ->> 'sweep';
  v_above_at numeric := coalesce((state ->> 'above')::numeric, 0);
  v_key jsonb := state -> 'key';
  v_pick record;
begin
  ids := '{}';
  costs := '{}';
  priorities := '{}';
  run_ats := '{}';
  before := 0;
  floored := false;
  if ageing is not null and (v_aged_at is null or extract(epoch from v_now) not between v_aged_at - 11 and v_aged_at) then
    v_aged_at := null;
    v_aged := floor(wanted * v_aged_part + queue_pg.next_turn('queue_pg.aged_turn'));
    if v_aged > 0 then
      v_pages := pg_stat_get_xact_blocks_fetched(v_index);
      select p.* into v_pick
      from queue_pg.pick_aged(queue, org, limit_key, kinds, v_aged, taken, v_now - ageing) p;
      ids := v_pick.ids;
      costs := v_pick.costs;
      before := cardinality(ids);
      priorities := array_fill(null::smallint, array[before]);
      run_ats := array_fill(null::timestamptz, array[before]);
      if pg_stat_get_xact_blocks_fetched(v_index) - v_pages > v_fair_aged then
        -- Dead entries are in the way, or very many priorities.
        v_aged_at := extract(epoch from v_now + least(20 * (clock_timestamp() - v_started), v_longest));
      end if;
    end if;
  end if;

  v_started := clock_timestamp();
  v_pages := pg_stat_get_xact_blocks_fetched(v_index);
  if v_key is null or extract(epoch from v_now) >= v_sweep_at or (v_key ->> 1)::timestamptz > v_now then
    select p.* into v_pick
    from queue_pg.pick_lane(queue, org, limit_key, kinds, wanted - before, taken || ids, null, null) p;
    ids := ids || v_pick.ids;
    costs := costs || v_pick.costs;
    priorities := priorities || v_pick.priorities;
    run_ats := run_ats || v_pick.run_ats;
    if pg_stat_get_xact_blocks_fetched(v_index) - v_pages > v_fair then
      floored := true;
      v_sweep_at := extract(epoch from v_now + least(20 * (clock_timestamp() - v_started), v_longest));
    end if;
  else
    floored := true;
    if extract(epoch from v_now) >= v_above_at then
      select p.* into v_pick
      from queue_pg.pick_lane(queue, org, limit_key, kinds, wanted - before, taken || ids, v_key, true) p;
      v_above_at := case when pg_stat_get_xact_blocks_fetched(v_index) - v_pages <= v_fair then 0
        else extract(epoch from v_now + least(20 * (clock_timestamp() - v_started), v_longest)) end;
      ids := ids || v_pick.ids;
      costs := costs || v_pick.costs;
      priorities := priorities || v_pick.priorities;
      run_ats := run_ats || v_pick.run_ats;
      before := cardinality(ids);
    end if;
    if before < wanted then
      select p.* into v_pick
      from queue_pg.pick_lane(queue, org, limit_key, kinds, wanted - before, taken || ids, v_key, false) p;
      ids := ids || v_pick.ids;
      costs := costs || v_pick.costs;
      priorities := priorities || v_pick.priorities;
      run_ats := run_ats || v_pick.run_ats;
    end if;
  end if;
  new_state := jsonb_strip_nulls(jsonb_build_object(
    'aged', v_aged_at, 'sweep', case when floored then v_sweep_at end, 'above', case when floored then v_above_at end));
end
$$;

-- The state of a lane after `count` of the jobs that were read have been taken: its floor is the last of them, or just
-- before the first that was left.
create or replace function queue_pg.floor_lane(
  ids uuid[], costs integer[], priorities smallint[], run_ats timestamptz[], before integer, count integer, state jsonb,
  new_state jsonb) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_key jsonb;
  v_cost numeric := (select avg(c) from unnest(costs[:count]) c);
begin
  if count > before then
    v_key := jsonb_build_array(priorities[count], run_ats[count], ids[count]);
  elsif cardinality(ids) > before then
    v_key := jsonb_build_array(priorities[before + 1], run_ats[before + 1] - interval '1 microsecond', ids[before + 1]);
  elsif state -> 'key' is not null then
    v_key := state -> 'key';
  else
    -- Nothing taken and nothing known: most jobs have priority 0.
    v_key := jsonb_build_array(0, v_now, '00000000-0000-0000-0000-000000000000');
  end if;
  -- While jobs flow in, transactions overtake each other: the floor stays a moment behind.
  if (v_key ->> 1)::timestamptz > v_now - interval '250 milliseconds' then
    v_key := jsonb_set(v_key, '{1}', to_jsonb(v_now - interval '250 milliseconds'));
  end if;
  return new_state || jsonb_build_object('key', v_key, 'cost', coalesce(to_jsonb(round(v_cost, 3)), state -> 'cost', '1'));
end
$$;
