-- Handing out work that is limited: the part of the claim that ordinary jobs never reach.
--
-- Here a lane is one (queue, org, limit_key), or one (queue, org) without a key when its queue has a limit. A claim leaps
-- through index jobs_keyed from key to key, leaves out those that are closed, and visits the others in random order, each
-- for its fair share first and then for what is left: a key with 100,000 jobs keeps one with 10 waiting for a handful of
-- jobs, and a key that is closed costs a leap, however many jobs it has. Inside a lane the order is that of every lane.

-- Locks the limit of a queue or key; `busy`: another holds it. With `wait`, waits for it. Even SKIP LOCKED waits when the
-- row is changed between being found and being locked.
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
begin
  busy := false;
  select l.* into held from queue_pg.limits l
  where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name for update skip locked;
  if found then
    return;
  end if;
  busy := exists (
    select from queue_pg.limits l
    where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name);
  if not busy and scope = 'key' then
    -- The longest template that fits, if any: a limit is made on first use.
    select l.* into v_template from queue_pg.limits l
    where l.org = lock_limit.org and l.scope = 'key' and l.name >= '*' and right(l.name, 1) = '*' and l.template is null
      and starts_with(lock_limit.name, left(l.name, -1))
    order by length(l.name) desc limit 1;
    if not found then
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
      org, scope, name, max_running, rate, per, burst, unit, paused_until, opens_at, template)
    values (
      lock_limit.org, 'key', lock_limit.name, v_template.max_running, v_template.rate, v_template.per, v_template.burst,
      v_template.unit, v_template.paused_until,
      queue_pg.limit_opens('-infinity', v_template.unit, v_template.burst, 1, v_template.paused_until), v_template.name)
    on conflict on constraint limits_pkey do nothing;
  end if;
  select l.* into held from queue_pg.limits l
  where l.org = lock_limit.org and l.scope = lock_limit.scope and l.name = lock_limit.name for update;
  busy := false;
end
$$;

-- Takes up to `wanted` jobs of one lane as far as its limits allow: locks them, counts them and marks them as counted.
-- `closed`: there is nothing more to be had here now; `busy`: another holds a limit of the lane. Waits 100 ms at most, less
-- than any deadlock_timeout, so a claim never is the victim of a deadlock, and makes nobody else it.
create or replace function queue_pg.take_from_lane(
  queue text, org text, limit_key text, kinds text[], wanted integer, taken uuid[], wait boolean,
  out ids uuid[], out closed boolean, out busy boolean)
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
  v_costs integer[];
  v_count integer := 0;
  v_opens timestamptz;
  v_counted smallint;
begin
  ids := '{}';
  closed := true;
  busy := false;
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

  if limit_key is null then
    select array_agg(p.id), array_agg(p.cost) into ids, v_costs
    from (
      select j.id, j.cost::integer from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is null and j.queue = take_from_lane.queue and j.org = take_from_lane.org
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.priority desc, j.run_at, j.id limit v_room for update skip locked) p;
  else
    select array_agg(p.id), array_agg(p.cost) into ids, v_costs
    from (
      select j.id, j.cost::integer from queue_pg.jobs j
      where j.state = 'queued' and j.limit_key is not null and j.queue = take_from_lane.queue
        and j.org = take_from_lane.org and j.limit_key = take_from_lane.limit_key
        and (kinds is null or j.kind = any (kinds)) and (j.expires_at is null or j.expires_at > v_now)
        and j.id <> all (taken)
      order by j.queue, j.org, j.limit_key, j.priority desc, j.run_at, j.id limit v_room for update skip locked) p;
  end if;
  ids := coalesce(ids, '{}');

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

-- Takes up to `wanted` limited jobs, or the share of them that belongs to limited lanes besides `others` ordinary ones.
-- `plain_queues` and `plain_orgs` are the lanes without a key whose queues have a limit.
create or replace function queue_pg.pick_limited(
  queues text[], kinds text[], wanted integer, only_org text, plain_queues text[], plain_orgs text[], others integer,
  taken uuid[]) returns uuid[]
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
  v_now timestamptz := queue_pg.now();
  v_after jsonb := coalesce(nullif(current_setting('queue_pg.limited_after', true), '')::jsonb, '{}');
  v_before jsonb := v_after;
  v_queue text;
  v_org text;
  v_key text;
  v_wrapped boolean;
  v_seen integer;
  v_found record;
  v_lane_queues text[] := plain_queues;
  v_lane_orgs text[] := plain_orgs;
  v_lane_keys text[] := array_fill(null::text, array[cardinality(plain_queues)]);
  v_closed boolean[] := '{}';
  v_lane record;
  v_take record;
  v_ids uuid[] := '{}';
  v_busy boolean := false;
  v_quota integer;
  v_share integer;
begin
  for v_queue in select distinct q from unnest(queues) q where q is not null loop
    v_org := coalesce(v_after -> v_queue ->> 0, '');
    v_key := coalesce(v_after -> v_queue ->> 1, '');
    v_wrapped := v_org = '';
    v_seen := 0;
    loop
      with recursive leaps as (
        (select j.org::text as org, j.limit_key::text as limit_key, 1 as nr from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue
            and (j.org, j.limit_key) > (v_org, v_key)
          order by j.queue, j.org, j.limit_key limit 1)
        union all
        select n.org, n.limit_key, l.nr + 1
        from leaps l cross join lateral (
          select j.org::text as org, j.limit_key::text as limit_key from queue_pg.jobs j
          where j.state = 'queued' and j.limit_key is not null and j.queue = v_queue
            and (j.org, j.limit_key) > (l.org, l.limit_key)
          order by j.queue, j.org, j.limit_key limit 1) n
        where l.nr < v_leap
      )
      select
        array_agg(l.org order by l.nr) filter (where o.is_open) as orgs,
        array_agg(l.limit_key order by l.nr) filter (where o.is_open) as keys, count(*) as leaps,
        (array_agg(l.org order by l.nr desc))[1] as last_org, (array_agg(l.limit_key order by l.nr desc))[1] as last_key
      into v_found
      from leaps l cross join lateral (
        select (only_org is null or l.org = only_org) and not exists (
          select from queue_pg.queues q where q.org = l.org and q.queue = v_queue and q.paused_until > v_now
        ) and not exists (
          select from queue_pg.limits m where m.org = l.org and m.scope = 'key' and m.name = l.limit_key
            and (m.running >= m.max_running or m.opens_at > v_now)
        ) and not exists (
          select from queue_pg.limits m where m.org = l.org and m.scope = 'queue' and m.name = v_queue
            and (m.running >= m.max_running or m.opens_at > v_now)
        ) as is_open) o;
      v_seen := v_seen + v_found.leaps;
      if v_found.orgs is not null then
        v_lane_queues := v_lane_queues || array_fill(v_queue, array[cardinality(v_found.orgs)]);
        v_lane_orgs := v_lane_orgs || v_found.orgs;
        v_lane_keys := v_lane_keys || v_found.keys;
      end if;
      if v_found.leaps = v_leap then
        v_org := v_found.last_org;
        v_key := v_found.last_key;
        exit when v_found.orgs is not null or v_seen >= v_most;
      elsif v_wrapped or v_found.orgs is not null then
        -- The next claim of this session begins at the first key again.
        v_org := '';
        exit;
      else
        v_wrapped := true;
        v_org := '';
        v_key := '';
      end if;
    end loop;
    v_after := case when v_org = '' then v_after - v_queue
      else v_after || jsonb_build_object(v_queue, jsonb_build_array(v_org, v_key)) end;
  end loop;
  if v_after <> v_before then
    perform set_config('queue_pg.limited_after', v_after::text, false);
  end if;
  if cardinality(v_lane_queues) = 0 then
    return '{}';
  end if;

  -- A fair share of what is wanted, by the number of lanes; of a fraction, as often as it says.
  v_quota := case when others = 0 then wanted else least(wanted, floor(
    wanted * cardinality(v_lane_queues) / (cardinality(v_lane_queues) + others)::float8 + random())::integer) end;
  v_share := ceil(v_quota::numeric / cardinality(v_lane_queues));
  for v_pass in 1..3 loop
    -- The third for limits that others held: only one who would go away empty-handed waits for them.
    continue when v_pass = 3 and not (v_busy and v_ids = '{}' and taken = '{}');
    for v_lane in
      select l.queue, l.org, l.limit_key, l.nr
      from unnest(v_lane_queues, v_lane_orgs, v_lane_keys) with ordinality as l (queue, org, limit_key, nr)
      order by random()
    loop
      exit when cardinality(v_ids) >= v_quota;
      continue when v_closed[v_lane.nr];
      begin
        select t.* into v_take from queue_pg.take_from_lane(
          v_lane.queue, v_lane.org, v_lane.limit_key, kinds,
          case v_pass when 1 then least(v_share, v_quota - cardinality(v_ids)) else v_quota - cardinality(v_ids) end,
          taken || v_ids, v_pass = 3) t;
      exception when lock_not_available or deadlock_detected then
        -- All that was done for this lane is undone.
        v_busy := true;
        continue;
      end;
      v_ids := v_ids || v_take.ids;
      v_closed[v_lane.nr] := v_take.closed and not v_take.busy;
      v_busy := v_busy or v_take.busy;
    end loop;
    exit when cardinality(v_ids) >= v_quota;
  end loop;
  return v_ids;
end
$$;
