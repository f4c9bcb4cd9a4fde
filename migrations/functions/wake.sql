-- Waking idle workers. NOTIFY is a hint and the rows are the truth: every listener polls as well.

-- Tells idle workers that something may be claimable or fall due sooner; delivered at commit, once per transaction.
create or replace function queue_pg.wake() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if (select s.notify from queue_pg.settings s) then
    perform pg_notify('queue_pg_wake', '');
  end if;
end
$$;

comment on function queue_pg.wake() is 'Wakes idle workers at commit; a no-op when settings.notify is off.';

-- Per statement, not per row: a bulk INSERT or COPY of a million jobs sends one hint.
create or replace function queue_pg.jobs_wake() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform queue_pg.wake();
  return null;
end
$$;

create or replace trigger jobs_wake after insert on queue_pg.jobs
  for each statement execute function queue_pg.jobs_wake();

-- What only the functions may set. A row with a state, a count or a fence of its own making could stop maintenance for
-- all (numbers at the end of their range) or hold a lease that nobody has. WHEN keeps it off an ordinary INSERT;
-- retry() carries token and event number over from a job's former life.
create or replace function queue_pg.jobs_admit() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform queue_pg.raise_invalid(
    'state', 'state, attempt, lease_token, lease_losses, last_event_seq and lease_expires_at are set by queue_pg alone');
  return null;
end
$$;

create or replace trigger jobs_admit before insert on queue_pg.jobs
  for each row when (
    new.state = 'running' or new.attempt <> 0 or new.lease_losses <> 0 or new.lease_token not between 0 and 1000000000000
    or new.last_event_seq not between 0 and 1000000000)
  execute function queue_pg.jobs_admit();

-- Runs only for rows that ask to start later (see WHEN), so an ordinary INSERT pays one comparison.
create or replace function queue_pg.jobs_schedule() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  new.state := 'scheduled';
  return new;
end
$$;

create or replace trigger jobs_schedule before insert on queue_pg.jobs
  for each row when (new.state = 'queued' and new.run_at > queue_pg.now())
  execute function queue_pg.jobs_schedule();
