-- A test's own record of everything that happens to jobs, written beside the logic under test and not by it.
create schema faults;

create table faults.edges (
  seq bigserial primary key,
  at timestamptz not null default clock_timestamp(),
  xid xid8 not null default pg_current_xact_id(),
  job uuid not null,
  what text not null, -- made, changed, renewed, removed, ended, taken back
  before text,
  after text,
  token bigint not null,
  losses integer not null,
  worker text,
  -- The lease that stood before this edge, and the one that stands after it.
  lease_before timestamptz,
  lease_after timestamptz
);

create function faults.note_job() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into faults.edges (job, what, after, token, losses) values (new.id, 'made', new.state, new.lease_token, new.lease_losses);
  elsif tg_op = 'DELETE' then
    insert into faults.edges (job, what, before, token, losses, worker, lease_before)
    values (old.id, 'removed', old.state, old.lease_token, old.lease_losses, old.worker_id, old.lease_expires_at);
  elsif old.state <> new.state or old.lease_token <> new.lease_token
    or old.lease_expires_at is distinct from new.lease_expires_at
  then
    insert into faults.edges (job, what, before, after, token, losses, worker, lease_before, lease_after)
    values (
      new.id, case when old.state = new.state and old.lease_token = new.lease_token then 'renewed' else 'changed' end,
      old.state, new.state, new.lease_token, new.lease_losses, new.worker_id, old.lease_expires_at, new.lease_expires_at);
  end if;
  return null;
end
$$;

create function faults.note_finished() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into faults.edges (job, what, after, token, losses, worker)
    values (new.id, 'ended', new.state, new.lease_token, new.lease_losses, new.worker_id);
  elsif tg_op = 'DELETE' then
    insert into faults.edges (job, what, before, token, losses) values (old.id, 'taken back', old.state, old.lease_token, old.lease_losses);
  elsif to_jsonb(old) - 'rerun_of' <> to_jsonb(new) - 'rerun_of' then
    -- What has ended does not change. (A rerun that the cache has answered is stored before it is said whose it is.)
    insert into faults.edges (job, what, before, after, token, losses)
    values (new.id, 'rewritten', old.state, new.state, new.lease_token, new.lease_losses);
  end if;
  return null;
end
$$;

create trigger note_job after insert or update or delete on queue_pg.jobs
  for each row execute function faults.note_job();
create trigger note_finished after insert or update or delete on queue_pg.finished_jobs
  for each row execute function faults.note_finished();
