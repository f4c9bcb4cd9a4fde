-- Handing out work that is limited: the part of the claim that ordinary jobs never reach.
--
-- Here a lane is one (queue, org, limit_key), or one (queue, org) without a key when its queue has a limit, a weight or an
-- ageing. A claim leaps through index jobs_keyed from key to key, leaves out those that are closed, and gives each of the
-- others its share, then what is left: a key with 100,000 jobs keeps one with 10 waiting for a handful of jobs, and a key
-- that is closed costs a leap, however many jobs it has. Inside a lane the order is that of every lane.
--
-- Shares are of cost: a lane's part of the jobs is its weight divided by the cost of its next jobs. Parts are fractions;
-- laid end to end on a line, each lane gets as many jobs as whole numbers fall into its part. Where the line begins moves
-- on at every claim by a step that makes this even over claims (next_turn() in lanes.sql), so nothing has to be written
-- down and shared between sessions.
--
-- What lies behind dead entries is remembered for a session as in claim.sql, in queue_pg.keyed: for each queue which keys a
-- leap found that was wasteful ("found"), until when that has to do ("at"), and the state of its lanes.

-- Locks the limit of a queue or key; `busy`: another holds it. With `wait`, waits for it. Even SKIP LOCKED waits when the
-- row is changed between being found and being locked. One that limits nothing is not locked.
create or replace function queue_pg.lock_limit(
  org text, scope text, name text, wait boolean, out held queue_pg.limits, out busy boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_template queue_pg.limits;
  v_counts boolean;
begin
  busy := false;
  select l.* into held from queue_pg.limits l
  where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name and l.counts
  for update skip locked;
  if found then
    return;
  end if;
  select l.counts into v_counts from queue_pg.limits l
  where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name;
  if found and not v_counts then
    return;
  end if;
  busy := found;
  if not busy and scope = 'key' then
    -- The longest template that fits, if any: a limit is made on first use.
    select l.* into v_template from queue_pg.limits l
    where l.org = lock_limit.org and l.scope = 'key' and l.name >= '*' and right(l.name, 1) = '*' and l.template is null
      and starts_with(lock_limit.name, left(l.name, -1))
    order by length(l.name) desc limit 1;
    if not found or not v_template.counts then
      return;
    end if;
  elsif not busy then
    return;
  end if;
  if busy and not wait then
    return;
  end if;
  if not busy then
    insert into queue_pg.limits (
      org, scope, name, max_running, rate, per, burst, unit, paused_until, weight, opens_at, template)
    values (
      lock_limit.org, 'key', lock_limit.name, v_template.max_running, v_template.rate, v_template.per, v_template.burst,
      v_template.unit, v_template.paused_until, v_template.weight,
      queue_pg.limit_opens('-infinity', v_template.unit, v_template.burst, 1, v_template.paused_until), v_template.name)
    on conflict on constraint limits_pkey do nothing;
  end if;
  select l.* into held from queue_pg.limits l
  where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name and l.counts for update;
  busy := false;
end
$$;

-- Takes up to `wanted` jobs of one lane as far as its limits allow: locks them, counts them and marks them as counted.
-- `closed`: there is nothing more to be had here now; `busy`: another holds a limit of the lane. Waits 100 ms at most, less
-- than any deadlock_timeout, so a claim never is the victim of a deadlock, and makes nobody else it.
-- `state` is what the session knows of the lane, and `new_state` what it does now: see lanes.sql.
create or replace function queue_pg.take_from_lane(
  queue text, org text, limit_key text, kinds text[], wanted integer, taken uuid[], wait boolean, state jsonb,
  ageing interval, out ids uuid[], out closed boolean, out busy boolean, out new_state jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
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
  v_locked record;
  v_key queue_pg.limits;
  v_queue queue_pg.limits;
  v_room integer := wanted;
  v_read record;
  v_costs integer[];
  v_count integer := 0;
  v_opens timestamptz;
  v_counted smallint;
begin
  ids := '{}';
  closed := true;
  busy := false;
  new_state := state;
  if limit_key is not null then
    select l.* into v_locked from queue_pg.lock_limit(org, 'key', limit_key, wait) l;
    if v_locked.busy then
      busy := true;
      return;
    end if;
    v_key := v_locked.held;
  end if;
  if exists (
    select from queue_pg.queues q where q.org = take_from_lane.org and q.queue = take_from_lane.queue and q.limited
  ) then
    select l.* into v_locked from queue_pg.lock_limit(org, 'queue', queue, wait) l;
    if v_locked.busy then
      busy := true;
      return;
    end if;
    v_queue := v_locked.held;
  end if;
  -- Read after the locks: nobody else changes these limits now.
  v_room := least(v_room, v_key.max_running - v_key.running, v_queue.max_running - v_queue.running);
  if v_room <= 0 or v_key.opens_at > v_now or v_queue.opens_at > v_now then
    return;
  end if;

  select r.* into v_read
  from queue_pg.read_lane(queue, org, limit_key, kinds, v_room, taken, state, ageing) r;
  ids := v_read.ids;
  v_costs := v_read.costs;

  if v_key.unit is not null or v_queue.unit is not null then
    -- In their order, up to the first that the buckets do not hold.
    for v_nr in 1..cardinality(ids) loop
      v_opens := greatest(
        queue_pg.limit_opens(v_key.full_at, v_key.unit, v_key.burst, v_costs[v_nr], null),
        queue_pg.limit_opens(v_queue.full_at, v_queue.unit, v_queue.burst, v_costs[v_nr], null));
      exit when v_opens > v_now;
      v_count := v_nr;
      -- A bucket in debt for longer than ten years is one for ever.
      v_key.full_at := greatest(v_key.full_at, v_now) + make_interval(
        secs => least(v_costs[v_nr] * extract(epoch from v_key.unit), 315360000)::float8);
      v_queue.full_at := greatest(v_queue.full_at, v_now) + make_interval(
        secs => least(v_costs[v_nr] * extract(epoch from v_queue.unit), 315360000)::float8);
    end loop;
    if v_count < cardinality(ids) then
      v_key.opens_at := queue_pg.limit_opens(v_key.full_at, v_key.unit, v_key.burst, v_costs[v_count + 1], v_key.paused_until);
      -- Of a queue, other lanes may have something cheaper.
      v_queue.opens_at := queue_pg.limit_opens(v_queue.full_at, v_queue.unit, v_queue.burst, 1, v_queue.paused_until);
    else
      v_key.opens_at := queue_pg.limit_opens(v_key.full_at, v_key.unit, v_key.burst, 1, v_key.paused_until);
      v_queue.opens_at := queue_pg.limit_opens(v_queue.full_at, v_queue.unit, v_queue.burst, 1, v_queue.paused_until);
    end if;
    perform queue_pg.wake_due(greatest(v_opens, v_key.opens_at, v_queue.opens_at));
    ids := ids[1:v_count];
  end if;
  v_count := cardinality(ids);
  closed := v_count < wanted;
  new_state := case when v_read.floored
      then queue_pg.floor_lane(
        v_read.ids, v_costs, v_read.priorities, v_read.run_ats, v_read.before, v_count, state, v_read.new_state)
    else nullif(v_read.new_state, '{}') end;

  if v_key.name is not null then
    update queue_pg.limits l
    set running = l.running + v_count, full_at = coalesce(v_key.full_at, l.full_at), opens_at = v_key.opens_at
    where l.org = v_key.org and l.scope = v_key.scope and l.name = v_key.name
      and (v_count > 0 or l.opens_at <> v_key.opens_at);
  end if;
  if v_count > 0 and v_queue.name is not null then
    update queue_pg.limits l
    set running = l.running + v_count, full_at = coalesce(v_queue.full_at, l.full_at), opens_at = v_queue.opens_at
    where l.org = v_queue.org and l.scope = v_queue.scope and l.name = v_queue.name;
  end if;
  v_counted := nullif((v_queue.name is not null)::integer + 2 * (v_key.name is not null)::integer, 0);
  if v_count > 0 then
    update queue_pg.jobs j set counted = v_counted
    from unnest(ids) as p (id) where j.id between p.id and p.id and j.counted is distinct from v_counted;
  end if;
end
$$;

-- Whether queues have jobs with keys; false also where there were none a moment ago and looking is expensive.
create or replace function queue_pg.has_keyed(queues text[], remembered_for text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_index constant oid := 'queue_pg.jobs_keyed'::regclass;
  v_now timestamptz := queue_pg.now();
  v_state jsonb := coalesce(nullif(current_setting('queue_pg.keyed', true), '')::jsonb -> remembered_for, '{}');
  v_before jsonb := v_state;
  v_queue text;
  v_started timestamptz;
  v_pages bigint;
  v_keyed boolean := false;
begin
  foreach v_queue in array coalesce(queues, '{}') loop
    continue when v_queue is null;
    if queue_pg.is_remembered(v_state -> v_queue, v_now) then
      v_keyed := v_state -> v_queue -> 'found' <> '[]';
    else
      v_started := clock_timestamp();
      v_pages := pg_stat_get_xact_blocks_fetched(v_index);
      v_keyed := exists (
        select from queue_pg.jobs j where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue);
      if not v_keyed and pg_stat_get_xact_blocks_fetched(v_index) - v_pages > 40 then
        v_state := v_state || jsonb_build_object(v_queue, jsonb_build_object(
          'at', queue_pg.remember_until(v_now, v_started), 'found', '[]'::jsonb, 'all', true));
      end if;
    end if;
    exit when v_keyed;
  end loop;
  if v_state <> v_before then
    perform set_config('queue_pg.keyed', jsonb_build_object(remembered_for, v_state)::text, false);
  end if;
  return v_keyed;
end
$$;

-- Looking again takes 5 % of the time at most, and is put off for no longer than ten seconds.
create or replace function queue_pg.remember_until(at timestamptz, started timestamptz) returns jsonb
language sql volatile
return to_jsonb(extract(epoch from at + least(20 * (clock_timestamp() - started), interval '10 seconds')));

-- One from before the clock went back counts no more.
create or replace function queue_pg.is_remembered(state jsonb, at timestamptz) returns boolean
language sql immutable
return coalesce((state ->> 'at')::numeric between extract(epoch from at) and extract(epoch from at) + 11, false);

-- Of the given keys of a queue those that let a job start now, with their weights and the ageing of their queue.
-- `templates`: there are weights for keys that begin with something.
create or replace function queue_pg.open_lanes(
  queue text, orgs text[], keys text[], costs integer[], only_org text, templates boolean,
  out open_orgs text[], out open_keys text[], out open_costs integer[], out weights double precision[],
  out ageings interval[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_now timestamptz := queue_pg.now();
begin
  select array_agg(l.org order by l.nr), array_agg(l.limit_key order by l.nr), array_agg(l.cost order by l.nr),
    array_agg(coalesce(q.weight, 1) * coalesce(k.weight, case when templates and k.name is null and l.limit_key is not null then (
      select t.weight from queue_pg.limits t
      where t.org = l.org and t.scope = 'key' and t.name >= '*' and right(t.name, 1) = '*' and t.template is null
        and starts_with(l.limit_key, left(t.name, -1))
      order by length(t.name) desc limit 1) end, 1) order by l.nr),
    array_agg(q.ageing order by l.nr)
  into open_orgs, open_keys, open_costs, weights, ageings
  from unnest(orgs, keys, costs) with ordinality as l (org, limit_key, cost, nr)
  left join queue_pg.limits k on k.org = l.org and k.scope = 'key' and k.name = l.limit_key
  left join queue_pg.limits q on q.org = l.org and q.scope = 'queue' and q.name = open_lanes.queue
  where (only_org is null or l.org = only_org)
    and not exists (
      select from queue_pg.queues p where p.org = l.org and p.queue = open_lanes.queue and p.paused_until > v_now)
    and coalesce(k.running < k.max_running, true) and coalesce(k.opens_at <= v_now, true)
    and coalesce(q.running < q.max_running, true) and coalesce(q.opens_at <= v_now, true);
  open_orgs := coalesce(open_orgs, '{}');
end
$$;

-- How many of `wanted` jobs each lane is to get, by weight and by the cost of its next jobs, and how much of all it weighs.
-- Where the cost is not given it is that of so many of the next jobs as its part may have.
create or replace function queue_pg.share_lanes(
  queues text[], orgs text[], keys text[], costs integer[], weights double precision[], states jsonb, wanted integer,
  others double precision, out shares integer[], out parts double precision[], out quota integer)
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
  v_lanes constant integer := cardinality(queues);
  v_look constant integer := least((wanted + v_lanes - 1) / v_lanes, 50);
  -- That of the next job alone, where it is given, does for a claim of few and for one lane beside ordinary ones.
  v_every constant boolean := v_look > 1 and v_lanes > 1;
  v_all double precision;
  v_turn double precision;
begin
  if v_lanes = 1 and others = 0 then
    quota := wanted;
    shares := array[wanted];
    parts := array[1];
    return;
  end if;
  select array_agg(l.weight / greatest(coalesce(s.cost, n.cost, l.cost, 1), 1) order by l.nr) into parts
  from unnest(queues, orgs, keys, costs, weights) with ordinality as l (queue, org, limit_key, cost, weight, nr)
  cross join lateral (
    -- Behind dead entries it is remembered.
    select (states -> l.queue -> 'lanes' -> l.org -> coalesce(l.limit_key, '') ->> 'cost')::double precision as cost) s
  cross join lateral (
    select avg(p.cost)::double precision as cost from (
      (select greatest(j.cost::integer, 1) as cost from queue_pg.jobs j
        where s.cost is null and (v_every or l.cost is null) and l.limit_key is not null
          and j.state = 'queued' and j.limit_key is not null and j.queue = l.queue and j.org = l.org
          and j.limit_key = l.limit_key
        order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id limit v_look)
      union all
      (select greatest(j.cost::integer, 1) from queue_pg.jobs j
        where s.cost is null and (v_every or l.cost is null) and l.limit_key is null
          and j.state = 'queued' and j.limit_key is null and j.queue = l.queue and j.org = l.org
        order by j.queue, j.org, j.priority desc, j.run_at, j.id limit v_look)) p
  ) n;
  select sum(p) into v_all from unnest(parts) p;
  -- Of a fraction, as often as it says.
  quota := case when others = 0 then wanted
    else least(wanted, floor(wanted * v_all / (v_all + others) + queue_pg.next_turn('queue_pg.limited_turn'))::integer) end;
  if quota = 0 then
    return;
  end if;
  v_turn := queue_pg.next_turn('queue_pg.turn');
  select array_agg(
    (floor(e.upto * quota / v_all + v_turn) - floor((e.upto - e.part) * quota / v_all + v_turn))::integer order by e.nr)
  into shares
  from (
    select l.nr, p.part, sum(p.part) over (order by l.queue, l.org, l.limit_key nulls first, l.nr) as upto
    from unnest(queues, orgs, keys) with ordinality as l (queue, org, limit_key, nr)
    cross join lateral (select parts[l.nr] as part) p
  ) e;
end
$$;

-- Takes up to `wanted` limited jobs, or the share of them that belongs to limited lanes besides ordinary ones, which have
-- the part `others`. `plain_queues` and `plain_orgs` are the lanes without a key that are limited.
create or replace function queue_pg.pick_limited(
  queues text[], kinds text[], wanted integer, only_org text, plain_queues text[], plain_orgs text[],
  others double precision, taken uuid[], remembered_for text) returns uuid[]
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
  -- Keys looked at in one leap, and by one claim in all when those before are closed.
  v_leap constant integer := 200;
  v_most constant integer := 5000;
  v_index constant oid := 'queue_pg.jobs_keyed'::regclass;
  v_now timestamptz := queue_pg.now();
  v_started timestamptz;
  v_pages bigint;
  v_after jsonb := coalesce(nullif(current_setting('queue_pg.limited_after', true), '')::jsonb, '{}');
  v_before jsonb := v_after;
  v_states jsonb := coalesce(nullif(current_setting('queue_pg.keyed', true), '')::jsonb -> remembered_for, '{}');
  v_known jsonb := v_states;
  -- Queues of which the session goes by what it remembers, although there are keys behind those.
  v_stopped text[] := '{}';
  v_templates boolean := exists (select from queue_pg.limits l where l.weight is not null and right(l.name, 1) = '*');
  v_queue text;
  v_org text;
  v_key text;
  v_wrapped boolean;
  v_seen integer;
  v_found record;
  v_open record;
  v_lane_queues text[] := '{}';
  v_lane_orgs text[] := '{}';
  v_lane_keys text[] := '{}';
  v_lane_costs integer[] := '{}';
  v_lane_weights double precision[] := '{}';
  v_lane_ageings interval[] := '{}';
  v_closed boolean[] := '{}';
  v_shared record;
  v_lane record;
  v_take record;
  v_ids uuid[] := '{}';
  v_busy boolean := false;
begin
  for v_queue in select distinct q from unnest(plain_queues) q loop
    select l.* into v_open from queue_pg.open_lanes(
      v_queue, (select array_agg(p.org) from unnest(plain_queues, plain_orgs) p (queue, org) where p.queue = v_queue),
      null, null, null, false) l;
    if v_open.open_orgs <> '{}' then
      v_lane_queues := v_lane_queues || array_fill(v_queue, array[cardinality(v_open.open_orgs)]);
      v_lane_orgs := v_lane_orgs || v_open.open_orgs;
      v_lane_keys := v_lane_keys || v_open.open_keys;
      v_lane_costs := v_lane_costs || v_open.open_costs;
      v_lane_weights := v_lane_weights || v_open.weights;
      v_lane_ageings := v_lane_ageings || v_open.ageings;
    end if;
  end loop;
  for v_queue in select distinct q from unnest(queues) q where q is not null loop
    v_org := coalesce(v_after -> v_queue ->> 0, '');
    v_key := coalesce(v_after -> v_queue ->> 1, '');
    v_wrapped := v_org = '';
    v_seen := 0;
    v_started := clock_timestamp();
    v_pages := pg_stat_get_xact_blocks_fetched(v_index);
    loop
      if queue_pg.is_remembered(v_states -> v_queue, v_now) then
        select array_agg(f.value ->> 0) as orgs, array_agg(f.value ->> 1) as keys, null::integer[] as costs,
          0::bigint as leaps, null::text as last_org, null::text as last_key
        into v_found
        from jsonb_array_elements(v_states -> v_queue -> 'found') f;
        if not (v_states -> v_queue -> 'all')::boolean then
          v_stopped := v_stopped || v_queue;
        end if;
      else
        with recursive leaps as (
          (select j.org::text as org, j.limit_key::text as limit_key, j.cost::integer as cost, 1 as nr from queue_pg.jobs j
            where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue
              and (j.org, j.limit_key) > (v_org, v_key)
            order by j.queue, j.org, j.limit_key limit 1)
          union all
          select n.org, n.limit_key, n.cost, l.nr + 1
          from leaps l cross join lateral (
            select j.org::text as org, j.limit_key::text as limit_key, j.cost::integer as cost from queue_pg.jobs j
            where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue
              and (j.org, j.limit_key) > (l.org, l.limit_key)
            order by j.queue, j.org, j.limit_key limit 1) n
          where l.nr < v_leap
        )
        select array_agg(l.org order by l.nr) as orgs, array_agg(l.limit_key order by l.nr) as keys,
          array_agg(l.cost order by l.nr) as costs, count(*) as leaps,
          (array_agg(l.org order by l.nr desc))[1] as last_org, (array_agg(l.limit_key order by l.nr desc))[1] as last_key
        into v_found
        from leaps l;
      end if;
      v_seen := v_seen + v_found.leaps;
      select l.* into v_open from queue_pg.open_lanes(
        v_queue, v_found.orgs, v_found.keys, v_found.costs, only_org, v_templates) l;
      if v_open.open_orgs <> '{}' then
        v_lane_queues := v_lane_queues || array_fill(v_queue, array[cardinality(v_open.open_orgs)]);
        v_lane_orgs := v_lane_orgs || v_open.open_orgs;
        v_lane_keys := v_lane_keys || v_open.open_keys;
        v_lane_costs := v_lane_costs || v_open.open_costs;
        v_lane_weights := v_lane_weights || v_open.weights;
        v_lane_ageings := v_lane_ageings || v_open.ageings;
      end if;
      exit when queue_pg.is_remembered(v_states -> v_queue, v_now);
      if v_found.leaps = v_leap then
        v_org := v_found.last_org;
        v_key := v_found.last_key;
        exit when v_open.open_orgs <> '{}' or v_seen >= v_most;
      elsif v_wrapped or v_open.open_orgs <> '{}' then
        -- The next claim of this session begins at the first key again.
        v_org := '';
        exit;
      else
        v_wrapped := true;
        v_org := '';
        v_key := '';
      end if;
    end loop;
    if not queue_pg.is_remembered(v_states -> v_queue, v_now) then
      if v_states ? v_queue then
        v_states := jsonb_set(
          v_states, array[v_queue], queue_pg.known_lanes(v_states -> v_queue, v_found.orgs, v_found.keys));
      end if;
      if pg_stat_get_xact_blocks_fetched(v_index) - v_pages > 40 + 6 * v_seen then
        v_states := v_states || jsonb_build_object(v_queue, coalesce(v_states -> v_queue, '{}') || jsonb_build_object(
          'at', queue_pg.remember_until(v_now, v_started), 'all', v_wrapped and v_found.leaps < v_leap,
          'found', coalesce((
            select jsonb_agg(jsonb_build_array(f.org, f.key)) from unnest(v_found.orgs, v_found.keys) f (org, key)), '[]')));
      end if;
    end if;
    v_after := case when v_org = '' then v_after - v_queue
      else v_after || jsonb_build_object(v_queue, jsonb_build_array(v_org, v_key)) end;
  end loop;
  if v_after <> v_before then
    perform set_config('queue_pg.limited_after', v_after::text, false);
  end if;

  if v_lane_queues <> '{}' then
    select s.* into v_shared from queue_pg.share_lanes(
      v_lane_queues, v_lane_orgs, v_lane_keys, v_lane_costs, v_lane_weights, v_states, wanted, others) s;
    for v_pass in 1..3 loop
      -- The first by shares, the second for what they left. The third for limits that others held: only one who would go
      -- away empty-handed waits for them.
      continue when v_pass = 3 and not (v_busy and v_ids = '{}' and taken = '{}');
      for v_lane in
        select l.queue, l.org, l.limit_key, l.nr, v_shared.shares[l.nr] as share,
          array[l.queue, 'lanes', l.org, coalesce(l.limit_key, '')] as place
        from unnest(v_lane_queues, v_lane_orgs, v_lane_keys) with ordinality as l (queue, org, limit_key, nr)
        where v_shared.quota > 0 and (v_pass > 1 or v_shared.shares[l.nr] > 0)
        -- In random order, by weight.
        order by -ln(1 - random()) / v_shared.parts[l.nr]
      loop
        exit when cardinality(v_ids) >= v_shared.quota;
        continue when v_closed[v_lane.nr];
        begin
          select t.* into v_take from queue_pg.take_from_lane(
            v_lane.queue, v_lane.org, v_lane.limit_key, kinds,
            least(case v_pass when 1 then v_lane.share end, v_shared.quota - cardinality(v_ids)),
            taken || v_ids, v_pass = 3, v_states #> v_lane.place, v_lane_ageings[v_lane.nr]) t;
        exception when lock_not_available or deadlock_detected then
          -- All that was done for this lane is undone. One such wait is enough for a claim: what it has locked others wait for.
          v_busy := true;
          exit when v_pass = 3;
          continue;
        end;
        v_ids := v_ids || v_take.ids;
        v_closed[v_lane.nr] := v_take.closed and not v_take.busy;
        v_busy := v_busy or v_take.busy;
        if v_take.new_state is not null then
          v_states := queue_pg.put_lane(v_states, v_lane.place, v_take.new_state);
        elsif v_states #> v_lane.place is not null then
          v_states := v_states #- v_lane.place;
        end if;
      end loop;
      exit when cardinality(v_ids) >= v_shared.quota;
    end loop;
  end if;
  if v_states <> v_known then
    perform set_config('queue_pg.keyed', jsonb_build_object(remembered_for, v_states)::text, false);
  end if;
  if v_ids = '{}' and v_stopped <> '{}' then
    -- Nothing among the keys that it remembers: on to the next ones.
    foreach v_queue in array v_stopped loop
      v_states := v_states #- array[v_queue, 'at'];
    end loop;
    perform set_config('queue_pg.keyed', jsonb_build_object(remembered_for, v_states)::text, false);
    return queue_pg.pick_limited(
      queues, kinds, wanted, only_org, plain_queues, plain_orgs, others, taken, remembered_for);
  end if;
  return v_ids;
end
$$;

-- What a session remembers of a queue's lanes, after a leap: those that it has found, and the one without a key.
create or replace function queue_pg.known_lanes(state jsonb, orgs text[], keys text[]) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
return jsonb_build_object('lanes', coalesce((
  select jsonb_object_agg(o.key, l.lanes)
  from jsonb_each(state -> 'lanes') o cross join lateral (
    select jsonb_object_agg(k.key, k.value) as lanes from jsonb_each(o.value) k
    where k.key = '' or exists (select from unnest(orgs, keys) f (org, key) where f.org = o.key and f.key = k.key)) l
  where l.lanes is not null), '{}'));

-- jsonb_set() makes the last step of a path only.
create or replace function queue_pg.put_lane(states jsonb, place text[], state jsonb) returns jsonb
language sql immutable
return states || jsonb_build_object(place[1], coalesce(states -> place[1], '{}') || jsonb_build_object(
  place[2], coalesce(states -> place[1] -> place[2], '{}') || jsonb_build_object(
    place[3], coalesce(states -> place[1] -> place[2] -> place[3], '{}') || jsonb_build_object(place[4], state))));
