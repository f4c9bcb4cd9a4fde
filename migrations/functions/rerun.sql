-- Running a job once more as a new one, to compare: what was changed is in the new job, the origin stays as it is.

-- RFC 7396: objects are merged, null removes a key, all else replaces.
create or replace function queue_pg.merge_patch(target jsonb, patch jsonb) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_merged jsonb := case jsonb_typeof(target) when 'object' then target else '{}' end;
  v_key text;
  v_value jsonb;
begin
  if jsonb_typeof(patch) is distinct from 'object' then
    return patch;
  end if;
  for v_key, v_value in select e.key, e.value from jsonb_each(patch) e loop
    if v_value = 'null' then
      v_merged := v_merged - v_key;
    elsif jsonb_typeof(v_value) = 'object' then
      v_merged := v_merged || jsonb_build_object(v_key, queue_pg.merge_patch(v_merged -> v_key, v_value));
    else
      v_merged := v_merged || jsonb_build_object(v_key, v_value);
    end if;
  end loop;
  return v_merged;
end
$$;

comment on function queue_pg.merge_patch(jsonb, jsonb) is 'JSON Merge Patch: objects are merged, null removes a key.';

-- Submits a job like `id`, live or finished, and returns it; its rerun_of is `id`. It starts from the beginning, with
-- attempts of its own. Of the origin it has everything that is not given but what is the origin's alone: unique key,
-- deadline, parent, batch, and the time at which it was to start. `payload` replaces the payload, `payload_patch` is merged
-- into it, `model` is a shorthand for the field model of the payload of a chat job. One whose payload still lacks what its
-- parents make, because it waits for them or ended while it did, waits for the same parents. A task is planned anew.
create or replace function queue_pg.rerun(
  id uuid,
  payload jsonb default null,
  payload_patch jsonb default null,
  model text default null,
  queue text default null,
  priority integer default null,
  run_at timestamptz default null,
  delay interval default null,
  max_attempts integer default null,
  timeout interval default null,
  tags text[] default null,
  metadata jsonb default null) returns setof queue_pg.all_jobs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_origin queue_pg.all_jobs;
  v_payload jsonb;
  v_parents jsonb;
  v_now timestamptz := queue_pg.now();
  v_run_at timestamptz := coalesce(rerun.run_at, v_now + coalesce(rerun.delay, '0'));
  v_id uuid := queue_pg.uuid7();
begin
  select j.* into v_origin from queue_pg.job(rerun.id) j;
  if v_origin.id is null then
    perform queue_pg.raise_not_found(rerun.id);
  end if;
  v_payload := coalesce(rerun.payload, v_origin.payload);
  if rerun.payload_patch is not null then
    if rerun.payload is not null then
      perform queue_pg.raise_invalid('payload_patch', 'excludes payload; give one of them');
    elsif jsonb_typeof(rerun.payload_patch) <> 'object' then
      perform queue_pg.raise_invalid('payload_patch', 'must be an object');
    elsif jsonb_typeof(v_payload) <> 'object' then
      perform queue_pg.raise_invalid('payload_patch', 'the payload of the job is no object');
    end if;
    v_payload := queue_pg.merge_patch(v_payload, rerun.payload_patch);
  end if;
  if rerun.model is not null then
    if v_origin.kind <> 'chat' then
      perform queue_pg.raise_invalid('model', format('is for jobs of kind chat; this one is of kind %s', v_origin.kind));
    elsif jsonb_typeof(v_payload) <> 'object' then
      perform queue_pg.raise_invalid('model', 'the payload of the job is no object');
    elsif length(rerun.model) not between 1 and 200 then
      perform queue_pg.raise_invalid('model', 'must have 1 to 200 characters');
    end if;
    v_payload := v_payload || jsonb_build_object('model', rerun.model);
  end if;

  select jsonb_agg(jsonb_build_object('job', d.parent_id, 'name', d.name, 'on_unsuccessful', d.on_unsuccessful))
  into v_parents from queue_pg.dependencies d
  where d.child_id = v_origin.id and not queue_pg.is_planned(v_origin.id) and (
    exists (select from queue_pg.jobs j where j.id = v_origin.id and j.parents_left > 0)
    or exists (select from queue_pg.finished_jobs f where f.id = v_origin.id and f.parents_left > 0));
  if v_parents is not null then
    v_id := queue_pg.submit(
      v_origin.kind, v_payload, coalesce(rerun.queue, v_origin.queue), coalesce(rerun.priority, v_origin.priority),
      v_run_at, max_attempts => coalesce(rerun.max_attempts, v_origin.max_attempts),
      timeout => coalesce(queue_pg.plain_interval(rerun.timeout), v_origin.timeout),
      tags => coalesce(rerun.tags, v_origin.tags), metadata => coalesce(rerun.metadata, v_origin.metadata),
      org => v_origin.org, traceparent => v_origin.traceparent, depends_on => v_parents,
      limit_key => v_origin.limit_key, cost => v_origin.cost);
    -- In the same transaction: nobody has seen it without. It may have ended with its parents already.
    update queue_pg.jobs j set rerun_of = v_origin.id where j.id = v_id;
    update queue_pg.finished_jobs f set rerun_of = v_origin.id where f.id = v_id;
    return query select j.* from queue_pg.job(v_id) j;
    return;
  end if;

  if v_origin.kind = 'plan' and v_payload ->> 'planner' = 'rules' then
    v_id := (
      select r.id from queue_pg.submit_by_rules(jsonb_strip_nulls(jsonb_build_object(
        'kind', v_origin.kind, 'queue', coalesce(rerun.queue, v_origin.queue),
        'priority', coalesce(rerun.priority, v_origin.priority), 'run_at', v_run_at, 'org', v_origin.org,
        'max_attempts', coalesce(rerun.max_attempts, v_origin.max_attempts), 'traceparent', v_origin.traceparent,
        'timeout_seconds', extract(epoch from coalesce(rerun.timeout, v_origin.timeout)),
        'tags', to_jsonb(coalesce(rerun.tags, v_origin.tags)), 'limit_key', v_origin.limit_key, 'cost', v_origin.cost))
        || jsonb_build_object('payload', v_payload, 'metadata', coalesce(rerun.metadata, v_origin.metadata))) r);
    update queue_pg.jobs j set rerun_of = v_origin.id where j.id = v_id;
    return query select j.* from queue_pg.job(v_id) j;
    return;
  end if;

  insert into queue_pg.jobs (
    id, run_at, created_at, state, max_attempts, cost, priority, org, queue, kind, payload, timeout, limit_key, tags,
    metadata, traceparent, rerun_of)
  values (
    v_id, v_run_at, v_now, case when v_run_at > v_now then 'scheduled' else 'queued' end::queue_pg.job_state,
    coalesce(rerun.max_attempts, v_origin.max_attempts), v_origin.cost, coalesce(rerun.priority, v_origin.priority),
    v_origin.org, coalesce(rerun.queue, v_origin.queue), v_origin.kind, v_payload,
    coalesce(queue_pg.plain_interval(rerun.timeout), v_origin.timeout), v_origin.limit_key,
    coalesce(rerun.tags, v_origin.tags), coalesce(rerun.metadata, v_origin.metadata), v_origin.traceparent, v_origin.id);
  return query select j.* from queue_pg.job(v_id) j;
end
$$;

comment on function queue_pg.rerun is
  'Submits a job like this one as a new job that is linked to it, perhaps with another payload or model.';
