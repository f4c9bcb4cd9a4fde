-- Deleting jobs that have ended, before their retention has.
--
-- What hangs on a job goes with it: its steps and signals, its events and log lines, the edges to its parents, its unique key,
-- and the answer that the cache has from it. Its artifacts cannot be read from then on, and maintenance removes them within a
-- minute or so, their contents as usual. What is said about it elsewhere stays, as after the end of a retention: a batch goes on
-- counting it, children and reruns go on naming it, and the job itself is nobody's parent any more.
--
-- A job is kept while another one waits that has it as a parent: its payload may be about to take what this one has made.

-- Forgets those of the jobs that have ended. `awaited` are those that have to stay for a child that waits. The rows are locked in
-- the order of their ids; nothing that others may hold for long is waited for.
create or replace function queue_pg.forget_jobs(ids uuid[], out deleted uuid[], out awaited uuid[])
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
  v_locked uuid[];
  v_cached bytea[];
  v_answers uuid[];
  v_children uuid[];
  v_keys text[];
  v_key_orgs text[];
  v_key_ids uuid[];
  v_waited bytea[];
  v_left uuid[];
begin
  select coalesce(array_agg(l.id), '{}') into v_locked
  from (
    select f.id from unnest(ids) as i (id) join queue_pg.finished_jobs f on f.id between i.id and i.id
    where f.retain_until > v_now order by i.id for update of f) l;
  -- A statement of its own: it sees whatever those who held the rows have done.
  select coalesce(array_agg(l.id), '{}') into awaited
  from unnest(v_locked) as l (id)
  -- LIMITs: looked up for each, and never joined by reading all that waits.
  where (
    select d.child_id from queue_pg.dependencies d
    cross join lateral (select c.parents_left from queue_pg.jobs c where c.id between d.child_id and d.child_id limit 1) w
    where d.parent_id between l.id and l.id and w.parents_left > 0 limit 1) is not null;

  with gone as (
    delete from queue_pg.finished_jobs f using unnest(v_locked) as l (id)
    where f.id between l.id and l.id and l.id <> all (forget_jobs.awaited)
    returning f.id, f.org, f.queue, f.state, f.unique_key, f.cache_key, f.parents_left
  ),
  uncounted as (
    insert into queue_pg.queue_counters (
      org, queue, completed, failed, cancelled, gone_completed, gone_failed, gone_cancelled)
    select g.org, g.queue, -count(*) filter (where g.state = 'completed'), -count(*) filter (where g.state = 'failed'),
      -count(*) filter (where g.state = 'cancelled'), count(*) filter (where g.state = 'completed'),
      count(*) filter (where g.state = 'failed'), count(*) filter (where g.state = 'cancelled')
    from gone g group by g.org, g.queue
  )
  select coalesce(array_agg(g.id), '{}'), array_agg(g.id) filter (where g.parents_left is not null),
    array_agg(g.cache_key) filter (where g.cache_key is not null), array_agg(g.id) filter (where g.cache_key is not null),
    array_agg(g.org) filter (where g.unique_key is not null), array_agg(g.unique_key) filter (where g.unique_key is not null),
    array_agg(g.id) filter (where g.unique_key is not null)
  into deleted, v_children, v_cached, v_answers, v_key_orgs, v_keys, v_key_ids
  from gone g;
  if deleted = '{}' then
    return;
  end if;

  if v_keys is not null then
    -- In the order in which submitters take them.
    with held as materialized (
      select u.org, u.unique_key
      from unnest(v_key_orgs, v_keys, v_key_ids) as k (org, unique_key, job_id)
      join queue_pg.unique_keys u on u.org = k.org and u.unique_key = k.unique_key and u.job_id = k.job_id
      order by u.org, u.unique_key for update of u
    )
    delete from queue_pg.unique_keys u using held h where u.org = h.org and u.unique_key = h.unique_key;
  end if;
  if v_cached is not null then
    -- An entry that somebody has locked keeps the answer's id; whoever looks for the answer finds that it is gone.
    with held as materialized (
      select c.cache_key from unnest(v_cached, v_answers) as k (key, id)
      join queue_pg.cache_entries c on c.cache_key between k.key and k.key
      where c.answer_id = k.id
      order by c.cache_key for update of c skip locked
    )
    update queue_pg.cache_entries c set answer_id = null, answered_at = null, answer_until = null
    from held h where c.cache_key between h.cache_key and h.cache_key;
    select array_agg(distinct k) into v_waited from unnest(v_cached) k
    where exists (select from queue_pg.jobs w where w.state = 'waiting' and w.cache_key between k and k);
    if v_waited is not null then
      -- They were about to get its result; one of them does the work anew.
      perform queue_pg.defer_cache(v_waited);
    end if;
    delete from queue_pg.cache_entries c
    where c.cache_key = any (array(
      select e.cache_key from unnest(v_cached) k
      join queue_pg.cache_entries e on e.cache_key between k and k
      where coalesce(e.job_id, e.answer_id) is null and (k = any (v_waited)) is not true
      for update of e skip locked));
  end if;
  if v_children is not null then
    with held as materialized (
      select d.child_id, d.name from queue_pg.dependencies d where d.child_id = any (v_children) for update skip locked
    )
    delete from queue_pg.dependencies d using held h where d.child_id = h.child_id and d.name = h.name;
    select array_agg(distinct d.child_id) into v_left from queue_pg.dependencies d where d.child_id = any (v_children);
    insert into queue_pg.ended_children (child_id, expires_at)
    select c, v_now + interval '1 minute' from unnest(v_left) c;
  end if;
  delete from queue_pg.stepped_jobs s where s.job_id = any (deleted);
  delete from queue_pg.job_signals s where s.job_id = any (deleted);
  delete from queue_pg.job_steps s where s.job_id = any (deleted);
  delete from queue_pg.job_events e where e.job_id = any (deleted);
  -- sweep_artifacts() finds that the jobs are gone.
  with held as materialized (
    select t.job_id from queue_pg.artifact_totals t where t.job_id = any (deleted) order by t.job_id for update
  )
  update queue_pg.artifact_totals t set look_at = v_now from held h where t.job_id = h.job_id;
end
$$;

-- Deletes a job that has ended, with all that belongs to it. An unfinished one raises QP002, unless `cancel`: then it is
-- cancelled first, and its worker loses the lease. So does one that a waiting child may still need. Raises QP001.
create or replace function queue_pg.delete(id uuid, cancel boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_forgotten record;
  v_state text;
begin
  loop
    v_forgotten := queue_pg.forget_jobs(array[id]);
    exit when v_forgotten.deleted <> '{}';
    v_state := queue_pg.state_of(id);
    if v_state is null then
      perform queue_pg.raise_not_found(id);
    elsif v_forgotten.awaited <> '{}' then
      perform queue_pg.raise_not_deleted(id, v_state, 'a job that waits has it as a parent and may need its result');
    elsif v_state in ('scheduled', 'waiting', 'queued', 'running') then
      if cancel is not true then
        perform queue_pg.raise_not_deleted(id, v_state, format('it is %s; cancel it first', v_state));
      end if;
      begin
        perform from queue_pg.cancel(id, 'cancelled to be deleted');
      exception when sqlstate 'QP001' or sqlstate 'QP002' then
        null;  -- it has ended, or was deleted, just now
      end;
    end if;
    -- Else it has ended again between the two looks.
  end loop;
end
$$;

comment on function queue_pg.delete(uuid, boolean) is
  'Deletes a job that has ended, with its events, steps and artifacts; with cancel => true an unfinished one too.';
