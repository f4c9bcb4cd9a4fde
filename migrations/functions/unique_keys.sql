-- Idempotent submission. The key is a row of its own table, so the database decides every race between submitters,
-- and it outlives the move of its job to finished_jobs.

-- Gives the key to the new job `id`, or returns the job that has it already and asks for the same work.
-- Waits for an open transaction that is submitting with the same key: only its outcome decides. Raises QP004 when the
-- key belongs to other work. A key that is in use is read without a lock: whoever finishes its job updates the row,
-- and must not wait for the end of this caller's transaction.
create or replace function queue_pg.take_unique_key(
  org text, unique_key text, id uuid, queue text, kind text, payload jsonb) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key queue_pg.unique_keys;
  v_job queue_pg.all_jobs;
begin
  loop
    insert into queue_pg.unique_keys as u (org, unique_key, job_id)
    values (take_unique_key.org, take_unique_key.unique_key, take_unique_key.id)
    on conflict on constraint unique_keys_pkey do nothing;
    if found then
      return take_unique_key.id;
    end if;

    select u.* into v_key from queue_pg.unique_keys u
    where u.org = take_unique_key.org and u.unique_key = take_unique_key.unique_key;
    if v_key.job_id = take_unique_key.id then
      return take_unique_key.id;
    end if;
    select j.* into v_job from queue_pg.job(v_key.job_id) j;
    exit when v_job.id is not null and (v_key.expires_at > queue_pg.now()) is not false;

    -- Its job is forgotten. Of several who find that, one takes the key over and the others look again; so do we
    -- when the sweep has removed the row meanwhile.
    update queue_pg.unique_keys u set job_id = take_unique_key.id, expires_at = null, template_md5 = null
    where u.org = take_unique_key.org and u.unique_key = take_unique_key.unique_key and u.job_id = v_key.job_id;
    if found then
      return take_unique_key.id;
    end if;
  end loop;

  if v_job.kind is distinct from take_unique_key.kind or v_job.queue is distinct from take_unique_key.queue
    or (v_job.payload is distinct from take_unique_key.payload
      and v_key.template_md5 is distinct from md5(take_unique_key.payload::text)) then
    perform queue_pg.raise_key_conflict(take_unique_key.unique_key, v_key.job_id);
  end if;
  return v_key.job_id;
end
$$;

-- For a plain INSERT: a key that another job has is refused as by any unique index, 23505. Use submit() to get the
-- existing job instead. A row whose id exists takes no key: its INSERT is about to fail, or ON CONFLICT leaves it out.
create or replace function queue_pg.keep_unique_key(
  org text, unique_key text, id uuid, queue text, kind text, payload jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_owner uuid;
  v_detail text;
begin
  if exists (select from queue_pg.jobs j where j.id = keep_unique_key.id) then
    return;
  end if;
  begin
    v_owner := queue_pg.take_unique_key(org, unique_key, id, queue, kind, payload);
  exception when sqlstate 'QP004' then
    get stacked diagnostics v_detail = pg_exception_detail;
    v_owner := (v_detail::jsonb ->> 'id')::uuid;
  end;
  if v_owner <> id then
    raise exception using errcode = 'unique_violation', schema = 'queue_pg', table = 'jobs',
      constraint = 'unique_keys_pkey',
      message = format('unique key %L already belongs to job %s', unique_key, v_owner),
      detail = jsonb_build_object('unique_key', unique_key, 'id', v_owner)::text,
      hint = 'Call queue_pg.submit(): it returns the existing job.';
  end if;
end
$$;
