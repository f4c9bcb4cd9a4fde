-- The errors that the SQL API raises on purpose. DETAIL is JSON, so that every client reads the values it is about.

create or replace function queue_pg.raise_not_found(id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP001', message = format('no job %s', id),
    detail = jsonb_build_object('id', id)::text,
    hint = 'Check the id; finished jobs are dropped after their retention.';
end
$$;

create or replace function queue_pg.raise_wrong_state(id uuid, action text, state text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP002', message = format('cannot %s job %s: it is %s', action, id, state),
    detail = jsonb_build_object('id', id, 'action', action, 'state', state)::text;
end
$$;

create or replace function queue_pg.raise_lease_lost(id uuid, state text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP003', message = format('the lease on job %s is no longer held', id),
    detail = jsonb_build_object('id', id, 'state', state)::text,
    hint = 'Drop the work: another worker has it, or it was cancelled.';
end
$$;

create or replace function queue_pg.raise_key_conflict(unique_key text, id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP004',
    message = format('unique key %L already belongs to job %s with another body', unique_key, id),
    detail = jsonb_build_object('unique_key', unique_key, 'id', id)::text,
    hint = 'Use a new key for new work, or send the same body again.';
end
$$;

create or replace function queue_pg.raise_draining(queue text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP006', message = format('queue %s is draining: it takes no new jobs', queue),
    detail = jsonb_build_object('queue', queue)::text,
    hint = 'Submit to another queue, or resume this one.';
end
$$;

create or replace function queue_pg.raise_invalid(field text, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP005', message = format('%s: %s', field, reason),
    detail = jsonb_build_object('field', field, 'reason', reason)::text;
end
$$;

create or replace function queue_pg.raise_batch_not_found(id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP001', message = format('no batch %s', id),
    detail = jsonb_build_object('batch_id', id)::text,
    hint = 'Check the id; finished batches are dropped after the retention.';
end
$$;

create or replace function queue_pg.raise_wrong_batch_state(id uuid, action text, state text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP002', message = format('cannot %s batch %s: it is %s', action, id, state),
    detail = jsonb_build_object('batch_id', id, 'action', action, 'state', state)::text;
end
$$;

create or replace function queue_pg.raise_artifact_refused(field text, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP030', message = format('artifact %s: %s', field, reason),
    detail = jsonb_build_object('field', field, 'reason', reason)::text;
end
$$;

create or replace function queue_pg.raise_artifact_too_large(field text, reason text, most bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP031', message = format('artifact %s: %s', field, reason),
    detail = jsonb_build_object('field', field, 'reason', reason, 'limit', most)::text,
    hint = 'The limits are in queue_pg.settings; queue_pg.configure() changes them.';
end
$$;

create or replace function queue_pg.raise_artifact_not_found(id uuid, name text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP032', message = format('job %s has no artifact %L', id, name),
    detail = jsonb_build_object('id', id, 'name', name)::text,
    hint = 'select * from queue_pg.list_artifacts(id) shows what it has.';
end
$$;

create or replace function queue_pg.raise_artifact_corrupt(sha256 bytea, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP033',
    message = format('the stored content %s is corrupt: %s', encode(sha256, 'hex'), reason),
    detail = jsonb_build_object('sha256', encode(sha256, 'hex'), 'reason', reason)::text;
end
$$;

create or replace function queue_pg.raise_too_late(id uuid, event text, state text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP002',
    message = format('cannot signal job %s: its wait for %L has timed out', id, event),
    detail = jsonb_build_object(
      'id', id, 'action', 'signal', 'state', state, 'reason', format('its wait for %L has timed out', event))::text;
end
$$;

create or replace function queue_pg.raise_not_deleted(id uuid, state text, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP002', message = format('cannot delete job %s: %s', id, reason),
    detail = jsonb_build_object('id', id, 'action', 'delete', 'state', state, 'reason', reason)::text;
end
$$;
