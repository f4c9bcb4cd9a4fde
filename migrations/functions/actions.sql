-- One action on all jobs that a filter names: cancel, retry, reprioritize, delete.
--
-- A call does one bite: it looks at ten times as many ids as it may change, locks those of at most `max_jobs` jobs that match, in the order of their
-- ids, acts, and says where to go on. So a million jobs are a thousand short transactions, of which each can be the last: who
-- stops, or crashes, calls again from where it was, or from the start. Jobs that were submitted after the first bite are left
-- alone, or an action would run after a busy producer for ever.

-- The condition on a job `j`, as SQL, that a filter means; what is wrong in it raises QP005 and names the field.
create or replace function queue_pg.filter_condition(filter jsonb) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_known constant text[] := '{all,state,kind,queue,tag,batch_id,parent_id,unique_key,rerun_of,error_code,created_after,created_before}';
  v_given jsonb;
  v_field text;
  v_value text;
  v_conditions text[] := '{}';
begin
  if filter is null or jsonb_typeof(filter) <> 'object' then
    perform queue_pg.raise_invalid('filter', 'must be an object');
  end if;
  v_given := jsonb_strip_nulls(filter);
  select k into v_field from jsonb_object_keys(v_given) k where k <> all (v_known) order by k limit 1;
  if found then
    perform queue_pg.raise_invalid(
      'filter.' || left(v_field, 100), 'is no filter; there are ' || array_to_string(v_known, ', '));
  end if;
  if v_given ? 'all' then
    if v_given -> 'all' <> 'true' then
      perform queue_pg.raise_invalid('filter.all', 'can only be true');
    elsif v_given <> '{"all": true}' then
      perform queue_pg.raise_invalid('filter.all', 'excludes the other filters');
    end if;
    return 'true';
  elsif v_given = '{}' then
    perform queue_pg.raise_invalid('filter', 'is empty; to mean every job, say {"all": true}');
  end if;

  for v_field in select k from jsonb_object_keys(v_given) k order by k loop
    v_value := v_given ->> v_field;
    if jsonb_typeof(v_given -> v_field) <> 'string' or length(v_value) not between 1 and 255 then
      perform queue_pg.raise_invalid('filter.' || v_field, 'must be a text of 1 to 255 characters');
    end if;
    if v_field = 'state' then
      if v_value not in ('scheduled', 'waiting', 'queued', 'running', 'completed', 'failed', 'cancelled') then
        perform queue_pg.raise_invalid('filter.state', 'is no state of a job');
      end if;
      v_conditions := v_conditions || format('j.state = %L', v_value);
    elsif v_field = 'tag' then
      v_conditions := v_conditions || format('%L = any (j.tags)', v_value);
    elsif v_field = 'error_code' then
      v_conditions := v_conditions || format('j.error ->> ''code'' = %L', v_value);
    elsif v_field in ('batch_id', 'parent_id', 'rerun_of') then
      if v_value !~* '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$' then
        perform queue_pg.raise_invalid('filter.' || v_field, 'must be a UUID');
      end if;
      v_conditions := v_conditions || format('j.%I = %L', v_field, v_value);
    elsif v_field in ('created_after', 'created_before') then
      begin
        v_conditions := v_conditions || format('j.created_at %s %L',
          case v_field when 'created_after' then '>=' else '<' end, v_value::timestamptz);
      exception when others then
        perform queue_pg.raise_invalid('filter.' || v_field, 'must be a time such as 2026-07-01T12:00:00Z');
      end;
    else
      v_conditions := v_conditions || format('j.%I = %L', v_field, v_value);
    end if;
  end loop;
  return array_to_string(v_conditions, ' and ');
end
$$;

-- Locks those of the jobs that a statement selects from `ids`, its $1. `busy` are those that somebody keeps locked for longer than
-- a moment.
create or replace function queue_pg.lock_matching(statement text, ids uuid[], out locked uuid[], out busy uuid[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set lock_timeout = '250ms'
as $$
declare
  v_rest uuid[];
  v_more uuid[];
begin
  busy := '{}';
  execute format('select coalesce(array_agg(l.id), ''{}'') from (%s for update of j skip locked) l', statement)
    into locked using ids;
  select array_agg(r.id order by r.id) into v_rest from (select unnest(ids) except select unnest(locked)) r (id);
  if v_rest is null then
    return;
  end if;
  begin
    -- A claim that is under way, mostly. Whoever does not match any more is passed by.
    execute format('select coalesce(array_agg(l.id), ''{}'') from (%s for update of j) l', statement) into v_more using v_rest;
    select coalesce(array_agg(l.id order by l.id), '{}') into locked from unnest(locked || v_more) l (id);
  exception when lock_not_available or deadlock_detected then
    execute format('select coalesce(array_agg(l.id), ''{}'') from (%s) l', statement) into busy using v_rest;
  end;
end
$$;

-- Does one action to up to `max_jobs` jobs that match a filter, in the order of their ids.
--   cancel        unfinished jobs, running ones too; `reason` is stored with them
--   retry         failed jobs, or cancelled ones if the filter says that state; `max_attempts` and `fresh` as of retry()
--   reprioritize  unfinished jobs; to `priority`
--   delete        jobs that have ended
-- The filter is an object with any of state, kind, queue, tag, batch_id, parent_id, unique_key, rerun_of, error_code,
-- created_after and created_before, or {"all": true}; an empty one is refused. `org` null: of all organisations.
-- `matched` jobs were found, `changed` of them changed; the others are counted by reason in `skipped`: locked (by another
-- transaction, for longer than a moment), gone (they did not match any more when they were locked), awaited (delete: a
-- child waits), same_priority, incomplete (retry: a subtask of it is forgotten). What ends, or is retried, because another job was is not counted.
-- Call it again with `after` => last_id and the same `as_of` until last_id is null; a bite may find nothing. With `dry_run`
-- nothing is changed, and a bite counts what it finds among 50,000 jobs.
create or replace function queue_pg.act_on_jobs(
  action text, filter jsonb, org text default 'default', reason text default null, priority integer default null,
  max_attempts integer default null, fresh boolean default false, dry_run boolean default false,
  max_jobs integer default 1000, after uuid default null, inout as_of timestamptz default null,
  out matched integer, out changed integer, out skipped jsonb, out last_id uuid)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  v_condition text := queue_pg.filter_condition(filter);
  v_live boolean := action in ('cancel', 'reprioritize');
  v_state text := filter ->> 'state';
  v_max_jobs integer := least(greatest(coalesce(max_jobs, 1000), 1), 10000);
  v_most_looks integer := case when dry_run then 50000 else 10 * v_max_jobs end;
  -- Of jobs to be deleted: there may be many thousand of one job.
  v_most_events constant integer := 50000;
  v_scope text;
  v_walk text;
  v_looked integer;
  v_last uuid;
  v_ids uuid[];
  v_lock record;
  v_statement text;
  v_error jsonb;
  v_done uuid[];
  v_id uuid;
  v_forgotten record;
  v_incomplete integer;
begin
  if action is null or action not in ('cancel', 'retry', 'reprioritize', 'delete') then
    perform queue_pg.raise_invalid('action', 'must be cancel, retry, reprioritize or delete');
  elsif v_live and v_state in ('completed', 'failed', 'cancelled') then
    perform queue_pg.raise_invalid('filter.state', format('is %s; %s is for jobs that have not ended', v_state, action));
  elsif action = 'retry' and v_state not in ('failed', 'cancelled') then
    perform queue_pg.raise_invalid('filter.state', format('is %s; retry is for failed and cancelled jobs', v_state));
  elsif action = 'delete' and v_state in ('scheduled', 'waiting', 'queued', 'running') then
    perform queue_pg.raise_invalid('filter.state', format('is %s; delete is for jobs that have ended: cancel them first', v_state));
  elsif action = 'reprioritize' and (priority is null or priority not between -32768 and 32767) then
    perform queue_pg.raise_invalid('priority', 'must be from -32,768 to 32,767');
  elsif action <> 'reprioritize' and priority is not null then
    perform queue_pg.raise_invalid('priority', 'is for reprioritize');
  elsif action <> 'retry' and max_attempts is not null then
    perform queue_pg.raise_invalid('max_attempts', 'is for retry');
  elsif max_attempts not between 1 and 1000 then
    perform queue_pg.raise_invalid('max_attempts', 'must be from 1 to 1000');
  elsif action <> 'retry' and fresh then
    perform queue_pg.raise_invalid('fresh', 'is for retry');
  elsif action <> 'cancel' and reason is not null then
    perform queue_pg.raise_invalid('reason', 'is for cancel');
  end if;
  as_of := coalesce(as_of, queue_pg.now());
  matched := 0;
  changed := 0;
  skipped := '{}';
  if org is not null then
    v_condition := format('j.org = %L and ', org) || v_condition;
  end if;
  v_condition := v_condition || format(' and j.created_at <= %L', as_of);
  if not v_live then
    v_condition := v_condition || format(' and j.retain_until > %L', queue_pg.now());
  end if;
  if action = 'retry' and v_state is null then
    v_condition := v_condition || ' and j.state = ''failed''';
    v_state := 'failed';
  end if;

  -- What an index knows narrows the walk, and the rest is looked at on the way.
  v_scope := format('j.id > %L', coalesce(after, '00000000-0000-0000-0000-000000000000'))
    || case when filter ->> 'batch_id' is not null then format(' and j.batch_id = %L', filter ->> 'batch_id') else '' end;
  v_walk := format('select j.id, (%s) as matches, j.last_event_seq::bigint as events from %s j where %s',
    v_condition, case when v_live then 'queue_pg.jobs' else 'queue_pg.finished_jobs' end, v_scope);
  if v_state in ('failed', 'cancelled') then
    v_walk := v_walk || format(' and j.state = %L', v_state);
    if filter ->> 'queue' is not null then
      v_walk := v_walk || format(' and j.queue = %L', filter ->> 'queue');
    elsif filter ->> 'batch_id' is null then
      -- Few are, among all that have ended: one look-up in each queue.
      v_walk := format('select w.* from (select distinct c.queue from queue_pg.queue_counters c) q '
        'cross join lateral (%s and j.queue = q.queue order by j.id limit %s) w', v_walk, v_most_looks);
    end if;
  end if;
  execute format(
    'with walked as materialized (select * from (%s) j order by j.id limit %s), '
    'found as (select w.id, sum(w.events) over (order by w.id) - w.events as events from walked w where w.matches '
    'order by w.id limit %s) '
    'select (select count(*) from walked), (select w.id from walked w order by w.id desc limit 1), '
    '(select coalesce(array_agg(f.id order by f.id), ''{}'') from found f where %s)',
    v_walk, v_most_looks, case when dry_run then v_most_looks else v_max_jobs end,
    case when action = 'delete' and not dry_run then format('f.events < %s', v_most_events) else 'true' end)
  into v_looked, v_last, v_ids;
  matched := cardinality(v_ids);
  -- Not all of the walk was taken, perhaps: then the next bite begins behind the last that was.
  last_id := case
    when not dry_run and matched > 0 and (matched = v_max_jobs or action = 'delete') and v_ids[matched] < v_last then v_ids[matched]
    when v_looked = v_most_looks then v_last end;
  if dry_run or matched = 0 then
    return;
  end if;

  -- IS TRUE: so that no other index than that of the ids fits, such as that of all that has failed in a queue.
  v_statement := format('select j.id from %s j where j.id = any ($1) and (%s) is true order by j.id',
    case when v_live then 'queue_pg.jobs' else 'queue_pg.finished_jobs' end, v_condition);
  v_lock := queue_pg.lock_matching(v_statement, v_ids);
  v_ids := v_lock.locked;
  skipped := jsonb_build_object(
    'locked', cardinality(v_lock.busy), 'gone', matched - cardinality(v_ids) - cardinality(v_lock.busy));
  if v_ids <> '{}' and action = 'cancel' then
    v_error := jsonb_build_object('code', 'cancelled', 'message', coalesce(reason, 'cancelled on request'));
    begin
      v_done := queue_pg.lock_families_soon(v_ids);
    exception when lock_not_available or deadlock_detected then
      -- Somebody keeps a subtask locked: without the tasks of those.
      v_done := '{}';
      foreach v_id in array v_ids loop
        begin
          v_done := v_done || queue_pg.lock_families_soon(array[v_id]);
        exception when lock_not_available or deadlock_detected then
          skipped := skipped || jsonb_build_object('locked', (skipped ->> 'locked')::integer + 1);
        end;
      end loop;
      select array_agg(distinct d) into v_done from unnest(v_done) d;
    end;
    perform queue_pg.end_cancelled(coalesce(v_done, '{}'), v_error);
    select count(*) into changed from (select unnest(v_ids) intersect select unnest(v_done)) c;
  elsif v_ids <> '{}' and action = 'reprioritize' then
    -- A FILTER, not a WHERE, of which the statistics may say that it leaves one job: then all would be read for each id.
    select coalesce(array_agg(j.id order by j.id) filter (where j.priority <> act_on_jobs.priority), '{}') into v_done
    from unnest(v_ids) as i (id) join queue_pg.jobs j on j.id between i.id and i.id;
    changed := cardinality(v_done);
    if changed > 0 then
      perform queue_pg.record_events(
        array_agg(j.id order by j.id), array_agg('reprioritized'::text),
        array_agg(jsonb_build_object('was', j.priority, 'priority', act_on_jobs.priority) order by j.id))
      from unnest(v_done) as i (id) join queue_pg.jobs j on j.id between i.id and i.id;
      update queue_pg.jobs j set priority = act_on_jobs.priority
      from unnest(v_done) as i (id) where j.id between i.id and i.id;
    end if;
    skipped := skipped || jsonb_build_object('same_priority', cardinality(v_ids) - changed);
  elsif v_ids <> '{}' and action = 'retry' then
    select r.retried, r.incomplete into changed, v_incomplete from queue_pg.retry_each(v_ids, max_attempts, fresh) r;
    skipped := skipped || jsonb_build_object('incomplete', v_incomplete);
  elsif v_ids <> '{}' then
    v_forgotten := queue_pg.forget_jobs(v_ids);
    changed := cardinality(v_forgotten.deleted);
    skipped := skipped || jsonb_build_object('awaited', cardinality(v_forgotten.awaited));
  end if;
  select coalesce(jsonb_object_agg(s.key, s.value), '{}') into skipped from jsonb_each(skipped) s where s.value <> '0';
end
$$;

comment on function queue_pg.act_on_jobs is
  'Cancels, retries, reprioritizes or deletes some of the jobs that match a filter; call it again with after => last_id until that is null.';
