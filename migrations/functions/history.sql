-- Partitions of history: made ahead, dropped when all they hold may be forgotten.

-- How wide a partition is: a quarter of the retention or less, so that forgetting is timely, yet never so narrow that
-- making and dropping them were work, and few for long retentions.
create or replace function queue_pg.partition_width(retention interval) returns interval
language sql immutable as $$
  select case
    when retention < '1 minute' then interval '5 seconds'
    when retention < '4 minutes' then interval '15 seconds'
    when retention < '20 minutes' then interval '1 minute'
    when retention <= '1 hour' then interval '5 minutes'
    when retention <= '1 day' then interval '1 hour'
    else interval '1 day' end
$$;

-- Makes sure that `parent` has a partition for the moment `at`, and returns the end of the one that covers it.
-- A new one is `width` wide unless its neighbours leave less room, and takes over what the default partition holds of
-- its range. Writers and readers of history wait meanwhile, so a range of which the default partition holds very much is
-- left to it, to be swept when its time has come. Raises lock_not_available when they are in the way; the caller tries
-- again later.
create or replace function queue_pg.cover(
  parent text, key text, at timestamptz, width interval, out covered_until timestamptz, out created boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '250ms'
-- Bounds are written out: ISO with a numeric zone, because the abbreviation of one may be read as another.
set datestyle = 'ISO'
set timezone = 'UTC'
as $$
declare
  v_from timestamptz;
  v_to timestamptz;
  v_name text;
  v_misplaced bigint;
begin
  created := false;
  select p.to_at into covered_until from queue_pg.partitions p
  where p.parent = cover.parent and p.from_at <= cover.at and p.to_at > cover.at;
  if found then
    return;
  end if;
  v_from := date_bin(width, cover.at, '2000-01-01+00');
  v_to := v_from + width;
  select greatest(v_from, max(p.to_at) filter (where p.to_at <= cover.at)),
    least(v_to, min(p.from_at) filter (where p.from_at > cover.at))
  into v_from, v_to from queue_pg.partitions p where p.parent = cover.parent;
  covered_until := v_to;

  execute format('select count(*) from (select from queue_pg.%I where %I >= %L and %I < %L limit 50001) d',
    parent || '_default', key, v_from, key, v_to) into v_misplaced;
  if v_misplaced > 50000 then
    return;
  end if;
  v_name := format('%s_%s', parent, to_char(v_from at time zone 'utc', 'YYYYMMDD"t"HH24MISS'));
  execute format(
    'create table queue_pg.%I '
    '(like queue_pg.%I including defaults including constraints including indexes including compression)',
    v_name, parent);
  execute format('alter table queue_pg.%I replica identity full', v_name);
  -- As late as can be, against writers: a row on its way to the default partition while its range gets a partition of
  -- its own would be refused there (23514), and one that arrives after the look would make ATTACH fail. And against
  -- readers: one who has listed the partitions, and takes its snapshot when a job has ended into the new one, would find
  -- that job nowhere. ATTACH locks the default partition against readers in any case.
  execute format('lock table only queue_pg.%I in access exclusive mode', parent);
  execute format(
    'with moved as (delete from queue_pg.%I where %I >= %L and %I < %L returning *) '
    'insert into queue_pg.%I select * from moved',
    parent || '_default', key, v_from, key, v_to, v_name);
  execute format('alter table queue_pg.%I attach partition queue_pg.%I for values from (%L) to (%L)',
    parent, v_name, v_from, v_to);
  insert into queue_pg.partitions (parent, name, from_at, to_at) values (cover.parent, v_name, v_from, v_to);
  created := true;
end
$$;

-- Takes finished jobs that are about to be forgotten out of the counters; the totals of monitoring keep them.
create or replace function queue_pg.uncount(org text, queue text, completed bigint, failed bigint, cancelled bigint)
returns void
language sql as $$
  insert into queue_pg.queue_counters (
    org, queue, completed, failed, cancelled, gone_completed, gone_failed, gone_cancelled)
  values (uncount.org, uncount.queue, -uncount.completed, -uncount.failed, -uncount.cancelled,
    uncount.completed, uncount.failed, uncount.cancelled)
$$;

-- One row for each queue again, when it is worth it. What is added meanwhile stays beside it.
create or replace function queue_pg.fold_counters() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  with folded as (
    delete from queue_pg.queue_counters c
    where (select count(*) > 500 + 2 * count(distinct (n.org, n.queue)) from queue_pg.queue_counters n)
    returning c.*
  )
  insert into queue_pg.queue_counters (
    org, queue, completed, failed, cancelled, gone_completed, gone_failed, gone_cancelled, retried, lease_losses,
    failed_webhooks)
  select f.org, f.queue, sum(f.completed), sum(f.failed), sum(f.cancelled), sum(f.gone_completed), sum(f.gone_failed),
    sum(f.gone_cancelled), sum(f.retried), sum(f.lease_losses), sum(f.failed_webhooks)
  from folded f group by f.org, f.queue
$$;

-- Forgets what has no partition of its own and may be forgotten: rows of the default partitions, unique keys, answers, steps,
-- finished batches, workers long dead. In bites, so that a long absence does not become one long transaction. True when there may be more.
create or replace function queue_pg.sweep() returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bite constant integer := 10000;
  v_now timestamptz := queue_pg.now();
  v_lane record;
  v_swept bigint;
  v_finished bigint := 0;
  v_more boolean;
begin
  delete from queue_pg.unique_keys u
  where (u.org, u.unique_key) in (
    select k.org, k.unique_key from queue_pg.unique_keys k
    where k.expires_at <= v_now order by k.expires_at limit v_bite for update skip locked);
  get diagnostics v_swept = row_count;
  v_more := v_swept = v_bite;
  v_more := queue_pg.sweep_steps() or v_more;
  delete from queue_pg.batches b
  where b.id in (
    select f.id from queue_pg.batches f
    where f.finished_at < v_now - (select s.retention from queue_pg.settings s)
    order by f.finished_at limit v_bite for update skip locked);
  get diagnostics v_swept = row_count;
  v_more := v_more or v_swept = v_bite;
  -- Those that a job still does the work of are kept for it.
  delete from queue_pg.cache_entries c
  where c.cache_key in (
    select e.cache_key from queue_pg.cache_entries e
    where e.answer_until <= v_now and e.job_id is null
      and (select w.id from queue_pg.jobs w where w.state = 'waiting' and w.cache_key = e.cache_key limit 1) is null
    order by e.answer_until limit v_bite for update skip locked);
  get diagnostics v_swept = row_count;
  v_more := v_more or v_swept = v_bite;
  perform queue_pg.mend_batches();
  v_more := queue_pg.sweep_dependencies(v_bite) or v_more;
  delete from queue_pg.workers w where w.heartbeat_at < v_now - interval '1 hour';
  -- Those that have vanished leave every transition notifying nobody.
  if exists (select from queue_pg.observers o where o.until < v_now) then
    perform queue_pg.unobserve('');
  end if;
  perform queue_pg.tidy_draining();
  -- Those that have vanished since a round or two ago.
  perform queue_pg.disarm_unserved(w.queues) from queue_pg.workers w
  where w.heartbeat_at between v_now - interval '130 seconds' and v_now - interval '60 seconds';
  delete from queue_pg.job_events_default e
  where e.ctid = any (array(
    select d.ctid from queue_pg.job_events_default d
    where d.at < v_now - (select s.events_retention from queue_pg.settings s) limit v_bite for update skip locked));
  get diagnostics v_swept = row_count;
  v_more := v_more or v_swept = v_bite;
  for v_lane in
    with gone as (
      delete from queue_pg.finished_jobs_default f
      where f.ctid = any (array(
        select d.ctid from queue_pg.finished_jobs_default d
        where d.retain_until <= v_now order by d.retain_until limit v_bite for update skip locked))
      returning f.org, f.queue, f.state
    )
    select g.org, g.queue, count(*) filter (where g.state = 'completed') as completed,
      count(*) filter (where g.state = 'failed') as failed, count(*) filter (where g.state = 'cancelled') as cancelled
    from gone g group by g.org, g.queue order by g.org, g.queue
  loop
    perform queue_pg.uncount(v_lane.org, v_lane.queue, v_lane.completed, v_lane.failed, v_lane.cancelled);
    v_finished := v_finished + v_lane.completed + v_lane.failed + v_lane.cancelled;
  end loop;
  return v_more or v_finished >= v_bite;
end
$$;

-- Drops one partition whose whole range may be forgotten, the oldest. False when somebody is in the way.
-- SHARE keeps writers out while its jobs are counted, readers only wait for the DROP. The counters change after it: who
-- waits for locks must not keep those waiting who finish jobs. A table that is no partition any more, because somebody
-- detached or dropped it, is theirs and only struck off the list.
create or replace function queue_pg.drop_partition(parent text, name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '250ms'
as $$
declare
  v_held jsonb;
begin
  if exists (
    select from pg_inherits i
    where i.inhrelid = to_regclass(format('queue_pg.%I', name)) and i.inhparent = to_regclass(format('queue_pg.%I', parent))
  ) then
    if parent = 'finished_jobs' then
      execute format('lock table queue_pg.%I in share mode', name);
      execute format(
        'select jsonb_agg(h) from ('
        'select org, queue, count(*) filter (where state = ''completed'') as completed, '
        'count(*) filter (where state = ''failed'') as failed, count(*) filter (where state = ''cancelled'') as cancelled '
        'from queue_pg.%I group by org, queue) h', name) into v_held;
    end if;
    execute format('drop table queue_pg.%I', name);
    perform queue_pg.uncount(h.org, h.queue, h.completed, h.failed, h.cancelled)
    from jsonb_to_recordset(v_held) as h (org text, queue text, completed bigint, failed bigint, cancelled bigint)
    order by h.org, h.queue;
  end if;
  delete from queue_pg.partitions p where p.name = drop_partition.name;
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end
$$;

-- Sweeps; then creates the partitions that will be needed soon or, when there are enough, drops the oldest one whose
-- whole range has passed: one a call, because DROP keeps everybody out of history until the transaction ends. Call it
-- again after again_seconds.
-- A lock is waited for at most 250 ms, in which writers of history wait behind; then nothing more that locks is tried,
-- and not again for 10 s. What fails for another reason is reported as a warning and does not keep the rest from being
-- done.
create or replace function queue_pg.maintain_history()
returns table (created integer, dropped integer, again_seconds double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '250ms'
as $$
declare
  v_now timestamptz := queue_pg.now();
  v_more boolean := false;
  v_blocked boolean := false;
  v_parent text;
  v_retention interval;
  v_width interval;
  v_at timestamptz;
  v_until timestamptz;
  v_created boolean;
  v_name text;
begin
  created := 0;
  dropped := 0;
  again_seconds := 2;
  if not pg_try_advisory_xact_lock(7310579610401947746) then
    return next;
    return;
  end if;
  again_seconds := 60;

  begin
    perform queue_pg.fold_counters();
  exception when others then
    raise warning 'queue_pg.fold_counters: %', sqlerrm;
  end;
  begin
    perform queue_pg.tidy_limits();
  exception when others then
    raise warning 'queue_pg.tidy_limits: %', sqlerrm;
  end;
  begin
    v_more := queue_pg.sweep();
  exception
    when lock_not_available or deadlock_detected then null;
    when others then raise warning 'queue_pg.sweep: %', sqlerrm;
  end;
  begin
    v_more := queue_pg.sweep_artifacts() or v_more;
  exception
    when lock_not_available or deadlock_detected then null;
    when others then raise warning 'queue_pg.sweep_artifacts: %', sqlerrm;
  end;

  for v_parent, v_retention in
    select 'finished_jobs', s.retention from queue_pg.settings s
    union select 'finished_jobs', q.retention from queue_pg.queues q where q.retention is not null
    union all select 'job_events', interval '0'
  loop
    v_width := case v_parent when 'job_events' then interval '1 day' else queue_pg.partition_width(v_retention) end;
    again_seconds := least(again_seconds, greatest(extract(epoch from v_width) / 2, 2));
    v_at := v_now + v_retention;
    v_until := v_at + greatest(2 * v_width, interval '30 seconds');
    begin
      while v_at <= v_until and not v_blocked loop
        select c.covered_until, c.created into v_at, v_created
        from queue_pg.cover(v_parent, case v_parent when 'job_events' then 'at' else 'retain_until' end, v_at, v_width) c;
        created := created + v_created::integer;
      end loop;
    exception
      when lock_not_available or deadlock_detected then v_blocked := true;
      when others then raise warning 'queue_pg.cover of %: %', v_parent, sqlerrm;
    end;
  end loop;

  for v_parent, v_name in
    select p.parent, p.name from queue_pg.partitions p
    where p.to_at <= v_now - case when p.parent = 'job_events'
      then (select s.events_retention from queue_pg.settings s) else interval '0' end
    order by p.to_at
  loop
    -- Making one keeps writers out until the transaction ends: that is no time to count what is in another.
    exit when v_blocked or dropped > 0 or created > 0;
    begin
      dropped := queue_pg.drop_partition(v_parent, v_name)::integer;
      v_blocked := dropped = 0;
    exception when others then
      raise warning 'queue_pg.drop_partition of %: %', v_name, sqlerrm;
    end;
  end loop;
  again_seconds := case
    when v_blocked then greatest(again_seconds, 10) when v_more or created + dropped > 0 then 0
    else again_seconds end;
  return next;
end
$$;

comment on function queue_pg.maintain_history is
  'Creates partitions ahead, drops forgotten ones; call it every minute, or as again_seconds says.';
