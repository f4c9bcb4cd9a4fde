-- Jobs that wait for others.
--
-- A child is `waiting` while parents_left is above 0. retire() tells the children of every job that ends and is awaited:
-- the rows of queue_pg.dependencies get the outcome, and the children count down, are released to run, or end
-- themselves, and then their own children are told. All of that happens in the transaction that ended the parent.
--
-- Two locks keep a child and the end of its parent from missing each other. Who submits a child locks its live parents
-- until it commits: either they end later and find the child, or it finds them ended. And a child is changed only
-- under its own row's lock, so that of two parents that end at once the second sees what the first has left.
--
-- Whoever ends a job must not wait long for its children: an application may hold one in an open transaction, and two that
-- end each other's grandchildren would wait for each other. So a child that stays locked for 100 ms, and what is too much
-- for one statement, is noted in queue_pg.unsettled, and maintenance looks at it: there the rows of dependencies are
-- counted, which settles whatever was missed. Rows of dependencies themselves are only changed by who holds the parent.

-- Locks those of the parents that live until the end of the transaction, marks them as awaited, and tells of each that
-- exists what it is: live, or how it has ended. In the order of their ids, as everywhere.
create or replace function queue_pg.hold_parents(ids uuid[])
returns table (id uuid, org text, state queue_pg.job_state)
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
  v_ids uuid[];
  v_left uuid[] := ids;
  v_queues text[];
begin
  for v_try in 1..100 loop
    with locked as materialized (
      select j.id, j.awaited, j.state, j.queue
      from unnest(v_left) as p (id) join queue_pg.jobs j on j.id between p.id and p.id
      order by p.id for no key update of j
    ),
    marked as (
      update queue_pg.jobs j set awaited = true from locked l where j.id between l.id and l.id and not l.awaited
    )
    select array_agg(l.id), array_agg(distinct l.queue::text) filter (where l.state = 'queued')
    into v_ids, v_queues from locked l;
    -- A claim that came meanwhile has skipped the row, and its worker would not look again before its poll.
    perform queue_pg.send_hint('queue_pg_wake', q) from unnest(v_queues) q, queue_pg.settings s where s.notify;
    return query
    select j.id, j.org::text, j.state from unnest(v_ids) as p (id) join queue_pg.jobs j on j.id between p.id and p.id;
    select array_agg(l.id) into v_left
    from (select unnest(v_left) as id except select unnest(v_ids)) l;
    exit when v_left is null;
    return query
    select f.id, f.org, f.state
    from unnest(v_left) as p (id) join queue_pg.finished_jobs f on f.id between p.id and p.id
    where f.retain_until > queue_pg.now();
    -- Live after all: somebody retried it between the two looks.
    select array_agg(j.id) into v_left
    from unnest(v_left) as p (id) join queue_pg.jobs j on j.id between p.id and p.id
    where not exists (
      select from queue_pg.finished_jobs f where f.id between p.id and p.id and f.retain_until > queue_pg.now());
    exit when v_left is null;
  end loop;
end
$$;

-- Why a child must not run, by one of its parents: null if that one is no reason. {"end": its state, "error": its error}
create or replace function queue_pg.fault_of(
  parent_id uuid, name text, outcome queue_pg.job_state, on_unsuccessful text) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when outcome in ('failed', 'cancelled') and on_unsuccessful <> 'run' then jsonb_build_object(
    'end', case on_unsuccessful when 'fail' then 'failed' else 'cancelled' end,
    'error', jsonb_build_object(
      'code', 'parent_' || outcome,
      'message', format('parent %s (%s) %s', name, parent_id,
        case outcome when 'failed' then 'failed' else 'was cancelled' end),
      'parent', name, 'parent_id', parent_id)) end
$$;

-- Locks those of the children that wait, without waiting long: `skipped` are those that somebody else keeps locked.
create or replace function queue_pg.lock_children(children uuid[], out locked uuid[], out skipped uuid[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set lock_timeout = '100ms'
as $$
declare
  v_more uuid[];
  -- A variable: an expression would be made anew for each row.
  v_locked jsonb;
begin
  select coalesce(array_agg(l.id), '{}') into locked
  from (
    select j.id from unnest(children) as c (id) join queue_pg.jobs j on j.id between c.id and c.id
    where j.parents_left > 0 order by c.id for update of j skip locked) l;
  v_locked := jsonb_object(locked::text[], locked::text[]);
  select coalesce(array_agg(w.id), '{}') into skipped
  from (
    select j.id from unnest(children) as c (id) join queue_pg.jobs j on j.id between c.id and c.id
    where j.parents_left > 0 and not v_locked ? j.id::text) w;
  if skipped <> '{}' then
    begin
      -- Two parents that end at once, mostly: the other is about to commit.
      select coalesce(array_agg(l.id), '{}') into v_more
      from (
        select j.id from unnest(skipped) as c (id) join queue_pg.jobs j on j.id between c.id and c.id
        where j.parents_left > 0 order by c.id for update of j) l;
      locked := locked || v_more;
      skipped := '{}';
    exception when lock_not_available or deadlock_detected then
      null;
    end;
  end if;
end
$$;

-- Leaves children to maintenance.
create or replace function queue_pg.defer_children(children uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into queue_pg.unsettled (child_id) select c from unnest(children) c;
  perform queue_pg.wake_due(queue_pg.now());
end
$$;

-- Changes children that the caller has locked: `settled` of the parents each waits for have ended, `faults` says which
-- must not run because of one, and `planned` which are tasks that wait for their subtasks: these are completed instead of
-- released. Returns those that ended by it and are awaited themselves, with their states.
create or replace function queue_pg.change_children(
  children uuid[], settled integer[], faults jsonb[], planned boolean[], out parents uuid[],
  out states queue_pg.job_state[])
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
  v_ending uuid[];
  v_ends queue_pg.job_state[];
  v_errors jsonb[];
  v_awaited boolean[];
  v_ready uuid[];
  v_templates uuid[];
  v_tasks uuid[];
  v_tasks_awaited boolean[];
  v_done uuid[] := '{}';
  v_done_awaited boolean[] := '{}';
  v_outputs jsonb[] := '{}';
  v_counting uuid[];
  v_lefts integer[];
  v_template record;
  v_payload queue_pg.payload;
  v_payloads jsonb[] := '{}';
  v_rendered uuid[] := '{}';
  v_reason text;
  v_queues text[];
  v_due timestamptz;
  v_observed boolean := queue_pg.is_observed();
  v_followed uuid[];
begin
  select
    coalesce(array_agg(c.id) filter (where c.fault is not null), '{}'),
    coalesce(array_agg((c.fault ->> 'end')::queue_pg.job_state) filter (where c.fault is not null), '{}'),
    coalesce(array_agg(case when c.planned then queue_pg.subtask_error(c.id, c.fault -> 'error')
      else c.fault -> 'error' end) filter (where c.fault is not null), '{}'),
    coalesce(array_agg(c.awaited) filter (where c.fault is not null), '{}'),
    array_agg(c.id) filter (where c.fault is null and c.parents_left <= 0 and not c.has_template),
    array_agg(c.id) filter (where c.fault is null and c.parents_left <= 0 and c.has_template),
    array_agg(c.id) filter (where c.fault is null and c.parents_left <= 0 and c.planned),
    array_agg(c.awaited) filter (where c.fault is null and c.parents_left <= 0 and c.planned),
    array_agg(c.id) filter (where c.fault is null and c.parents_left > 0),
    array_agg(c.parents_left) filter (where c.fault is null and c.parents_left > 0)
  into v_ending, v_ends, v_errors, v_awaited, v_ready, v_templates, v_tasks, v_tasks_awaited, v_counting, v_lefts
  from (
    select j.id, j.awaited, a.fault, a.planned, j.parents_left - a.settled as parents_left,
      -- Null of a task: it has had its turn.
      case when a.fault is null and j.parents_left <= a.settled and not a.planned
        then strpos(j.payload::text, '{{') > 0 end as has_template
    from unnest(children, settled, faults, planned) as a (id, settled, fault, planned)
    join queue_pg.jobs j on j.id between a.id and a.id
    where j.parents_left > 0) c;

  for v_template in
    select j.id, j.payload::jsonb as payload, j.awaited, j.org::text as org, j.unique_key::text as unique_key
    from unnest(v_templates) as t (id) join queue_pg.jobs j on j.id between t.id and t.id
  loop
    begin
      v_payload := queue_pg.render_payload(v_template.id, v_template.payload);
      v_rendered := array_append(v_rendered, v_template.id);
      v_payloads := array_append(v_payloads, v_payload::jsonb);
    exception when others then
      -- Whatever is wrong with it: this job alone ends, and nobody else's end depends on that.
      v_reason := sqlerrm;
      v_ending := array_append(v_ending, v_template.id);
      v_ends := array_append(v_ends, 'failed'::queue_pg.job_state);
      v_errors := array_append(v_errors, jsonb_build_object('code', 'template_error', 'message', left(v_reason, 2000)));
      v_awaited := array_append(v_awaited, v_template.awaited);
      continue;
    end;
    if v_template.unique_key is not null then
      update queue_pg.unique_keys u set template_md5 = md5(v_template.payload::text)
      where u.org = v_template.org and u.unique_key = v_template.unique_key and u.job_id = v_template.id;
    end if;
  end loop;

  for v_nr in 1..coalesce(cardinality(v_tasks), 0) loop
    begin
      v_outputs := array_append(v_outputs, queue_pg.gather_subtasks(v_tasks[v_nr]));
      v_done := array_append(v_done, v_tasks[v_nr]);
      v_done_awaited := array_append(v_done_awaited, v_tasks_awaited[v_nr]);
    exception when others then
      v_reason := sqlerrm;
      v_ending := array_append(v_ending, v_tasks[v_nr]);
      v_ends := array_append(v_ends, 'failed'::queue_pg.job_state);
      v_errors := array_append(v_errors, jsonb_build_object('code', 'output_error', 'message', left(v_reason, 2000)));
      v_awaited := array_append(v_awaited, v_tasks_awaited[v_nr]);
    end;
  end loop;

  if v_counting is not null then
    update queue_pg.jobs j set parents_left = c.parents_left
    from unnest(v_counting, v_lefts) as c (id, parents_left) where j.id between c.id and c.id;
  end if;
  if v_ready is not null or v_rendered <> '{}' then
    -- Apart: a payload that is written again is checked again.
    with plain as (
      update queue_pg.jobs j
      set parents_left = 0, promoted_at = case when j.run_at <= v_now then v_now end,
        state = case when j.run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state
      from unnest(v_ready) as r (id) where j.id between r.id and r.id
      returning j.*
    ),
    filled as (
      update queue_pg.jobs j
      set parents_left = 0, payload = r.payload, promoted_at = case when j.run_at <= v_now then v_now end,
        state = case when j.run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state
      from unnest(v_rendered, v_payloads) as r (id, payload) where j.id between r.id and r.id
      returning j.*
    ),
    released as (
      select p.id, p.org, p.queue, p.kind, p.state, p.run_at, p.last_event_seq, p.followed from plain p
      union all
      select f.id, f.org, f.queue, f.kind, f.state, f.run_at, f.last_event_seq, f.followed from filled f
    )
    select array_agg(distinct r.queue::text) filter (where r.state = 'queued'),
      min(r.run_at::timestamptz) filter (where r.state = 'scheduled'),
      array_agg(r.id) filter (where r.followed and r.state = 'queued'),
      count(queue_pg.tell_transition(
        r.id, r.org::text, r.queue::text, r.kind::text, 'promoted', greatest(r.last_event_seq, 1)::integer + 1))
        filter (where v_observed and r.state = 'queued')
    into v_queues, v_due, v_followed
    from released r;
    perform queue_pg.wake(q) from unnest(v_queues) q;
    perform queue_pg.tell_followers(v_followed);
    if v_due is not null then
      perform queue_pg.wake_due(v_due);
    end if;
  end if;
  if v_ending <> '{}' then
    -- In bites: what it costs to record many at once grows faster than their number.
    for v_bite in 0..cardinality(v_ending) / 500 loop
      perform queue_pg.record_events(
        array_agg(e.id), array_agg(e.state::text), array_agg(jsonb_build_object('error', e.error)))
      from unnest(v_ending[v_bite * 500 + 1:v_bite * 500 + 500], v_ends[v_bite * 500 + 1:v_bite * 500 + 500],
        v_errors[v_bite * 500 + 1:v_bite * 500 + 500]) as e (id, state, error);
    end loop;
    perform queue_pg.retire(v_ending, v_ends, array_fill(null::jsonb, array[cardinality(v_ending)]), v_errors, null, false);
  end if;
  if v_done <> '{}' then
    -- retire() tells of ends as completed by itself.
    perform queue_pg.retire(v_done, null, v_outputs, null, null, false);
  end if;
  if v_ending <> '{}' or v_done <> '{}' then
    select array_agg(e.id), array_agg(e.state) into parents, states
    from (
      select u.id, u.state, u.awaited from unnest(v_ending, v_ends, v_awaited) as u (id, state, awaited)
      union all
      select u.id, 'completed', u.awaited from unnest(v_done, v_done_awaited) as u (id, awaited)
    ) e
    where e.awaited;
  end if;
end
$$;

-- Tells the children of jobs that have just ended, and theirs, if they end by it. A loop, not a recursion: a graph may be
-- deeper than a stack. What is too much for one statement is left to maintenance.
create or replace function queue_pg.release_children(ended uuid[], ends queue_pg.job_state[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_most_children constant integer := 10000;
  v_most_rounds constant integer := 1000;
  v_parents uuid[] := ended;
  v_states queue_pg.job_state[] := ends;
  v_children uuid[];
  v_settled integer[];
  v_faults jsonb[];
  v_planned boolean[];
  v_lock record;
  v_skipped jsonb;
  v_rounds integer := 0;
  v_seen integer := 0;
begin
  while v_parents is not null loop
    with told as (
      update queue_pg.dependencies d set outcome = p.state
      from unnest(v_parents, v_states) as p (id, state)
      where d.parent_id between p.id and p.id and d.outcome is null
      returning d.child_id, d.name, queue_pg.fault_of(d.parent_id, d.name, d.outcome, d.on_unsuccessful) as fault,
        d.subtask is not null as planned
    )
    select array_agg(c.child_id), array_agg(c.settled), array_agg(c.fault), array_agg(c.planned)
    into v_children, v_settled, v_faults, v_planned
    from (
      select t.child_id, count(*)::integer as settled, bool_or(t.planned) as planned,
        (array_agg(t.fault order by t.fault ->> 'end' desc, t.name) filter (where t.fault is not null))[1] as fault
      from told t group by t.child_id order by t.child_id) c;
    exit when v_children is null;
    v_rounds := v_rounds + 1;
    v_seen := v_seen + cardinality(v_children);
    if v_rounds > v_most_rounds or v_seen > v_most_children then
      perform queue_pg.defer_children(v_children);
      exit;
    end if;
    v_lock := queue_pg.lock_children(v_children);
    if v_lock.skipped <> '{}' then
      perform queue_pg.defer_children(v_lock.skipped);
      v_skipped := jsonb_object(v_lock.skipped::text[], v_lock.skipped::text[]);
      select array_agg(c.id), array_agg(c.settled), array_agg(c.fault), array_agg(c.planned)
      into v_children, v_settled, v_faults, v_planned
      from unnest(v_children, v_settled, v_faults, v_planned) as c (id, settled, fault, planned)
      where not v_skipped ? c.id::text;
    end if;
    select c.parents, c.states into v_parents, v_states
    from queue_pg.change_children(v_children, v_settled, v_faults, v_planned) c;
  end loop;
end
$$;

-- Looks at children anew, by the rows of dependencies alone.
create or replace function queue_pg.recheck_children(children uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_lock record := queue_pg.lock_children(children);
  v_settled integer[];
  v_faults jsonb[];
  v_planned boolean[];
  v_parents uuid[];
  v_states queue_pg.job_state[];
begin
  if v_lock.skipped <> '{}' then
    perform queue_pg.defer_children(v_lock.skipped);
  end if;
  select array_agg(c.settled order by c.nr), array_agg(c.fault order by c.nr), array_agg(c.planned order by c.nr)
  into v_settled, v_faults, v_planned
  from (
    select l.nr, coalesce(bool_or(d.subtask is not null), false) as planned,
      j.parents_left - (count(d.child_id) filter (where d.outcome is null))::integer as settled,
      (array_agg(f.fault order by f.fault ->> 'end' desc, d.name) filter (where f.fault is not null))[1] as fault
    from unnest(v_lock.locked) with ordinality as l (id, nr)
    join queue_pg.jobs j on j.id between l.id and l.id
    left join queue_pg.dependencies d on d.child_id between l.id and l.id
    cross join lateral (select queue_pg.fault_of(d.parent_id, d.name, d.outcome, d.on_unsuccessful) as fault) f
    group by l.nr, j.parents_left) c;
  select c.parents, c.states into v_parents, v_states
  from queue_pg.change_children(v_lock.locked, v_settled, v_faults, v_planned) c;
  perform queue_pg.release_children(v_parents, v_states);
end
$$;

-- A step of maintenance: looks at children that could not be told when a parent ended.
create or replace function queue_pg.settle(max_jobs integer default 1000) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_children uuid[];
begin
  with taken as (
    delete from queue_pg.unsettled u
    where u.ctid = any (array(select t.ctid from queue_pg.unsettled t limit max_jobs for update skip locked))
    returning u.child_id
  )
  select array_agg(distinct t.child_id order by t.child_id) into v_children from taken t;
  if v_children is null then
    return 0;
  end if;
  perform queue_pg.recheck_children(v_children);
  return cardinality(v_children);
end
$$;

comment on function queue_pg.settle(integer) is
  'Releases or ends children that were locked when a parent ended; returns how many it looked at.';

-- For retry(): makes a child that ended before it was released wait for those of its parents that live again, and returns
-- how many do. The others are taken as they are: whoever retries wants it run. Not so subtasks, which their task follows.
create or replace function queue_pg.rejoin_parents(child_id uuid) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_live uuid[];
  v_left integer;
begin
  select coalesce(array_agg(h.id) filter (where h.state <= 'running'), '{}') into v_live
  from queue_pg.hold_parents(
    (select array_agg(distinct d.parent_id) from queue_pg.dependencies d where d.child_id = rejoin_parents.child_id)) h;
  -- Those of live parents wait again, those of the others count as told.
  update queue_pg.dependencies d set outcome = null
  where d.child_id = rejoin_parents.child_id and d.parent_id = any (v_live);
  update queue_pg.dependencies d
  set outcome = coalesce(queue_pg.state_of(d.parent_id)::queue_pg.job_state, d.outcome, 'cancelled'),
    on_unsuccessful = case when d.subtask is null then 'run' else d.on_unsuccessful end
  where d.child_id = rejoin_parents.child_id and d.parent_id <> all (v_live);
  select count(*) into v_left from queue_pg.dependencies d
  where d.child_id = rejoin_parents.child_id and d.outcome is null;
  return v_left;
end
$$;

-- A bite of maintain_history(): forgets the dependencies of children that are forgotten themselves. True when there may be
-- more. Rows that the end of a parent is just changing are passed over, and with them their child, until the next time.
create or replace function queue_pg.sweep_dependencies(bite integer) returns boolean
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
  v_children uuid[];
  v_locked bigint;
  v_child uuid;
begin
  with due as materialized (
    select e.ctid from queue_pg.ended_children e where e.expires_at <= v_now
    order by e.expires_at limit bite for update skip locked
  ),
  taken as (
    delete from queue_pg.ended_children e using due where e.ctid = due.ctid returning e.child_id
  )
  select coalesce(array_agg(distinct t.child_id), '{}') into v_children from taken t;
  foreach v_child in array v_children loop
    -- Retried since: its next end dates them anew.
    continue when queue_pg.state_of(v_child) is not null;
    with gone as materialized (
      select d.child_id, d.name from queue_pg.dependencies d where d.child_id = v_child for update skip locked
    )
    delete from queue_pg.dependencies d using gone g where d.child_id = g.child_id and d.name = g.name;
    select count(*) into v_locked from queue_pg.dependencies d where d.child_id = v_child;
    if v_locked > 0 then
      insert into queue_pg.ended_children (child_id, expires_at) values (v_child, v_now + interval '1 minute');
    end if;
  end loop;
  return cardinality(v_children) = bite;
end
$$;
