-- Figures for monitoring, which asks every few seconds: no look reads more than a bounded part of the live jobs.

-- The claimable jobs of each (org, queue) and the oldest of them, by walking the indexes of claims from their ends:
-- behind what has been claimed, and its dead entries. `more`: the walk stopped before the head, after `exact` jobs in
-- this lane or five times as many in all.
create or replace function queue_pg.queued_counts(only_org text, exact integer)
returns table (org text, queue text, jobs bigint, oldest_at timestamptz, more boolean)
language plpgsql volatile
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
  v_most_lanes constant integer := 1000;
  v_left integer := 5 * exact;
  v_lane record;
  v_keyed boolean;
  v_bound integer;
begin
  for v_lane in
    with recursive unkeyed as (
      (select j.queue::text as queue, j.org::text as org from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null
        order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1)
      union all
      select n.queue, n.org from unkeyed u cross join lateral (
        select j.queue::text as queue, j.org::text as org from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and (j.queue, j.org) < (u.queue, u.org)
        order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1) n
    ),
    keyed as (
      (select j.queue::text as queue, j.org::text as org from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null
        order by j.queue desc, j.org desc, j.limit_key desc, j.priority, j.run_at desc, j.id desc limit 1)
      union all
      select n.queue, n.org from keyed k cross join lateral (
        select j.queue::text as queue, j.org::text as org from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and (j.queue, j.org) < (k.queue, k.org)
        order by j.queue desc, j.org desc, j.limit_key desc, j.priority, j.run_at desc, j.id desc limit 1) n
    )
    (select u.queue, u.org, false as keyed from unkeyed u limit v_most_lanes)
    union all
    (select k.queue, k.org, true from keyed k limit v_most_lanes)
  loop
    continue when only_org <> v_lane.org;
    org := v_lane.org;
    queue := v_lane.queue;
    v_keyed := v_lane.keyed;
    v_bound := least(exact, v_left) + 1;
    if v_keyed then
      select count(*), min(c.run_at) into jobs, oldest_at from (
        select j.run_at::timestamptz as run_at from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is not null and j.queue = v_lane.queue and j.org = v_lane.org
        order by j.queue desc, j.org desc, j.limit_key desc, j.priority, j.run_at desc, j.id desc limit v_bound) c;
    else
      select count(*), min(c.run_at) into jobs, oldest_at from (
        select j.run_at::timestamptz as run_at from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = v_lane.queue and j.org = v_lane.org
        order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit v_bound) c;
    end if;
    v_left := greatest(v_left - jobs, 0);
    more := jobs >= v_bound;
    if more and not v_keyed then
      -- The oldest is at the head of one of the priorities.
      select least(oldest_at, min(h.run_at)) into oldest_at
      from (
        with recursive priorities as (
          (select j.priority from queue_pg.jobs j
            where j.state = 'queued' and j.limit_key is null and j.queue = v_lane.queue and j.org = v_lane.org
            order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1)
          union all
          select n.priority from priorities p cross join lateral (
            select j.priority from queue_pg.jobs j
            where j.state = 'queued' and j.limit_key is null and j.queue = v_lane.queue and j.org = v_lane.org
              and j.priority > p.priority
            order by j.queue desc, j.org desc, j.priority, j.run_at desc, j.id desc limit 1) n
        )
        select p.priority from priorities p limit 100
      ) p
      cross join lateral (
        select j.run_at::timestamptz as run_at from queue_pg.jobs j
        where j.state = 'queued' and j.limit_key is null and j.queue = v_lane.queue and j.org = v_lane.org
          and j.priority = p.priority
        order by j.queue, j.org, j.priority desc, j.run_at, j.id limit 1) h;
    end if;
    return next;
  end loop;
end
$$;

-- Up to `exact` running and up to `exact` scheduled jobs by (org, queue): `more` when there are more of that state.
create or replace function queue_pg.dated_counts(exact integer)
returns table (org text, queue text, state queue_pg.job_state, jobs bigint, more boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
  return query
  with running as materialized (
    select j.org::text as org, j.queue::text as queue from queue_pg.jobs j
    where j.state = 'running' order by j.lease_expires_at limit exact + 1
  ),
  scheduled as materialized (
    select j.org::text as org, j.queue::text as queue from queue_pg.jobs j
    where j.state = 'scheduled' order by j.run_at limit exact + 1
  )
  select r.org, r.queue, 'running'::queue_pg.job_state, count(*), (select count(*) > exact from running)
  from running r group by r.org, r.queue
  union all
  select s.org, s.queue, 'scheduled', count(*), (select count(*) > exact from scheduled)
  from scheduled s group by s.org, s.queue;
end
$$;

-- Live jobs by (org, queue) and state. Exact while `jobs` has `small` bytes at most. Of a bigger table the first `exact`
-- claimable jobs of a queue, and the first `exact` running and scheduled ones, are counted, and where there are more the
-- figure comes from a sample of a thousand pages, always the same ones; those that wait do so at once. `estimated` says
-- which queues have such a figure.
create or replace function queue_pg.live_counts(
  only_org text default null, exact integer default 10000, small bigint default 16777216)
returns table (
  org text, queue text, scheduled bigint, waiting bigint, queued bigint, running bigint, oldest_queued_at timestamptz,
  estimated boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_sampled_pages constant float8 := 1000;
  v_pages float8 := pg_relation_size('queue_pg.jobs'::regclass) / current_setting('block_size')::float8;
  v_percent float8 := least(100 * v_sampled_pages / greatest(v_pages, 1), 100);
begin
  if pg_relation_size('queue_pg.jobs'::regclass) <= small then
    return query
    select j.org::text, j.queue::text, count(*) filter (where j.state = 'scheduled'),
      count(*) filter (where j.state = 'waiting'), count(*) filter (where j.state = 'queued'),
      count(*) filter (where j.state = 'running'), (min(j.run_at) filter (where j.state = 'queued'))::timestamptz, false
    from queue_pg.jobs j
    where only_org is null or j.org = only_org
    group by j.org, j.queue;
    return;
  end if;
  return query
  with seen as materialized (
    select j.org::text as org, j.queue::text as queue, j.state, count(*) as jobs,
      (min(j.run_at) filter (where j.state = 'queued'))::timestamptz as oldest_at
    from queue_pg.jobs j tablesample system (v_percent) repeatable (1)
    group by j.org, j.queue, j.state
  ),
  -- How many jobs one of the sample stands for. The statistics know the sum more exactly than the pages do, unless they
  -- were lost or are far behind.
  factor as (
    select case when k.known between 0.8 * k.guessed and 1.25 * k.guessed then k.known / s.jobs else 100 / v_percent end as f
    from (select sum(n.jobs)::float8 as jobs from seen n) s
    cross join lateral (select s.jobs * 100 / v_percent as guessed,
      pg_stat_get_live_tuples('queue_pg.jobs'::regclass)::float8 as known) k
  ),
  sampled as (
    select n.org, n.queue, n.state, round(n.jobs * f.f)::bigint as jobs, n.oldest_at from seen n cross join factor f
    where only_org is null or n.org = only_org
  ),
  counted as (
    select q.org, q.queue, 'queued'::queue_pg.job_state as state, sum(q.jobs)::bigint as jobs, min(q.oldest_at) as oldest_at,
      bool_or(q.more) as more
    from queue_pg.queued_counts(only_org, exact) q group by q.org, q.queue
    union all
    select d.org, d.queue, d.state, d.jobs, null, d.more
    from queue_pg.dated_counts(exact) d where only_org is null or d.org = only_org
  ),
  stopped as (
    -- Of these states there may be queues that the count did not come to.
    select c.state from counted c where c.more and c.state <> 'queued' group by c.state
  ),
  merged as (
    select coalesce(c.org, s.org) as org, coalesce(c.queue, s.queue) as queue, coalesce(c.state, s.state) as state,
      case
        when c.more then greatest(c.jobs, s.jobs)
        when c.org is not null then c.jobs
        when s.state in ('waiting', 'queued') or s.state in (select t.state from stopped t) then s.jobs
        else 0 end as jobs,
      case when c.more or c.org is null and s.state = 'queued' then least(c.oldest_at, s.oldest_at) else c.oldest_at end
        as oldest_at,
      coalesce(c.more, s.state in ('waiting', 'queued') or s.state in (select t.state from stopped t)) as estimated
    from counted c full join sampled s on s.org = c.org and s.queue = c.queue and s.state = c.state
  )
  select m.org, m.queue, coalesce(sum(m.jobs) filter (where m.state = 'scheduled'), 0)::bigint,
    coalesce(sum(m.jobs) filter (where m.state = 'waiting'), 0)::bigint,
    coalesce(sum(m.jobs) filter (where m.state = 'queued'), 0)::bigint,
    coalesce(sum(m.jobs) filter (where m.state = 'running'), 0)::bigint, min(m.oldest_at), bool_or(m.estimated)
  from merged m group by m.org, m.queue;
end
$$;

comment on function queue_pg.live_counts is
  'Live jobs by queue and state at a bounded cost: exact while they are few, and from then on partly estimated.';

-- What monitoring asks of each queue. Totals only ever grow. At most `max_queues`, those with the most jobs ever; each
-- row says how many others there are.
create or replace function queue_pg.queue_metrics(only_org text default null, max_queues integer default 200)
returns table (
  org text, queue text, paused boolean, scheduled bigint, waiting bigint, queued bigint, running bigint,
  estimated boolean, oldest_queued_seconds double precision, completed bigint, failed bigint, cancelled bigint,
  retried bigint, lease_losses bigint, failed_webhooks bigint, workers bigint, unlisted bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
begin
  return query
  with totals as (
    select c.org, c.queue, sum(c.completed + coalesce(c.gone_completed, 0))::bigint as completed,
      sum(c.failed + coalesce(c.gone_failed, 0))::bigint as failed,
      sum(c.cancelled + coalesce(c.gone_cancelled, 0))::bigint as cancelled,
      coalesce(sum(c.retried), 0)::bigint as retried, coalesce(sum(c.lease_losses), 0)::bigint as lease_losses,
      coalesce(sum(c.failed_webhooks), 0)::bigint as failed_webhooks
    from queue_pg.queue_counters c
    where only_org is null or c.org = only_org
    group by c.org, c.queue
  ),
  known as (
    select org, queue, coalesce(q.paused_until > v_now, false) as paused, l.scheduled, l.waiting, l.queued, l.running,
      l.oldest_queued_at, l.estimated, t.completed, t.failed, t.cancelled, t.retried, t.lease_losses, t.failed_webhooks
    from queue_pg.live_counts(only_org) l
    full join totals t using (org, queue)
    full join (select q.org, q.queue, q.paused_until from queue_pg.queues q where only_org is null or q.org = only_org) q
      using (org, queue)
  ),
  ranked as (
    select k.*, count(*) over () as queues, row_number() over (
      order by coalesce(k.completed, 0) + coalesce(k.failed, 0) + coalesce(k.cancelled, 0) + coalesce(k.scheduled, 0)
        + coalesce(k.waiting, 0) + coalesce(k.queued, 0) + coalesce(k.running, 0) desc, k.org, k.queue) as nr
    from known k
  )
  select r.org, r.queue, r.paused, coalesce(r.scheduled, 0), coalesce(r.waiting, 0), coalesce(r.queued, 0),
    coalesce(r.running, 0), coalesce(r.estimated, false),
    coalesce(greatest(extract(epoch from v_now - r.oldest_queued_at), 0), 0)::double precision,
    coalesce(r.completed, 0), coalesce(r.failed, 0), coalesce(r.cancelled, 0), coalesce(r.retried, 0),
    coalesce(r.lease_losses, 0), coalesce(r.failed_webhooks, 0),
    (select count(*) from queue_pg.workers w
      where r.queue = any (w.queues) and not w.stopping and w.heartbeat_at > v_now - interval '60 seconds'),
    greatest(r.queues - max_queues, 0)
  from ranked r where r.nr <= max_queues
  order by r.org, r.queue;
end
$$;

comment on function queue_pg.queue_metrics is
  'What monitoring asks of each queue, at a bounded cost: live jobs (see live_counts), totals that only grow, workers.';

-- What monitoring asks of the instance: one row.
create or replace function queue_pg.instance_metrics()
returns table (
  workers bigint, stopping_workers bigint, slots bigint, busy_slots bigint, schedules bigint, paused_schedules bigint,
  failing_schedules bigint, schedule_lag_seconds double precision, due_lag_seconds double precision,
  horizon_age_seconds double precision, horizon_age_transactions integer, horizon_kind text, dead_jobs bigint,
  dead_counters bigint, live_jobs bigint, jobs_bytes bigint, maintenance_leads boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
begin
  return query
  select w.workers, w.stopping, w.slots, w.busy, s.schedules, s.paused, s.failing,
    coalesce(greatest(extract(epoch from v_now - s.next_fire_at), 0), 0)::double precision,
    coalesce(greatest(extract(epoch from v_now - (
      select j.run_at::timestamptz from queue_pg.jobs j where j.state = 'scheduled' order by j.run_at limit 1
    )), 0), 0)::double precision,
    coalesce(h.age_seconds, 0), coalesce(h.age_transactions, 0), h.kind,
    pg_stat_get_dead_tuples('queue_pg.jobs'::regclass), pg_stat_get_dead_tuples('queue_pg.queue_counters'::regclass),
    pg_stat_get_live_tuples('queue_pg.jobs'::regclass), pg_total_relation_size('queue_pg.jobs'::regclass),
    coalesce((select m.leader_until > v_now from queue_pg.maintenance m), false)
  from (
    select count(*) filter (where not w.stopping) as workers, count(*) filter (where w.stopping) as stopping,
      coalesce(sum(w.capacity) filter (where not w.stopping), 0)::bigint as slots, coalesce(sum(w.active), 0)::bigint as busy
    from queue_pg.workers w where w.heartbeat_at > v_now - interval '60 seconds'
  ) w
  cross join (
    select count(*) as schedules, count(*) filter (where s.paused) as paused,
      count(*) filter (where s.error is not null) as failing, min(s.next_fire_at) as next_fire_at
    from queue_pg.schedules s
  ) s
  left join queue_pg.horizon() h on true;
end
$$;

comment on function queue_pg.instance_metrics is 'What monitoring asks of the instance: workers, schedules, dead rows and who keeps them.';

-- What runs under the limits that people have set. Those that a template has made for its keys are added up under the
-- template's name: there may be very many. At most `max_limits`, by name.
create or replace function queue_pg.limit_metrics(only_org text default null, max_limits integer default 200)
returns table (org text, scope text, name text, running bigint, max_running bigint, full_limits bigint)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select l.org, l.scope, coalesce(l.template, l.name), sum(l.running)::bigint, sum(l.max_running)::bigint,
    count(*) filter (where l.running >= l.max_running)
  from queue_pg.limits l
  -- A template itself has nothing that runs, and its maximum is that of each key.
  where (only_org is null or l.org = only_org) and (l.scope = 'queue' or l.template is not null or right(l.name, 1) <> '*')
    and (l.max_running is not null or l.rate is not null)
  group by l.org, l.scope, coalesce(l.template, l.name)
  order by l.org, l.scope, coalesce(l.template, l.name)
  limit max_limits
$$;

comment on function queue_pg.limit_metrics is 'What runs under the limits that people have set, those of a template added up.';
