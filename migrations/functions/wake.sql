-- Waking idle workers. NOTIFY is a hint and the rows are the truth: every listener polls as well.

-- Tells idle workers that something may be claimable or fall due sooner; delivered at commit, once per transaction.
create or replace function queue_pg.wake() returns void
language plpgsql as $$
begin
  if (select s.notify from queue_pg.settings s) then
    perform pg_notify('queue_pg_wake', '');
  end if;
end
$$;

comment on function queue_pg.wake() is 'Wakes idle workers at commit; a no-op when settings.notify is off.';

-- Per statement, not per row: a bulk INSERT or COPY of a million jobs sends one hint.
create or replace function queue_pg.jobs_wake() returns trigger
language plpgsql as $$
begin
  perform queue_pg.wake();
  return null;
end
$$;

create or replace trigger jobs_wake after insert on queue_pg.jobs
  for each statement execute function queue_pg.jobs_wake();

-- Runs only for rows that ask to start later (see WHEN), so an ordinary INSERT pays one comparison.
create or replace function queue_pg.jobs_schedule() returns trigger
language plpgsql as $$
begin
  new.state := 'scheduled';
  return new;
end
$$;

create or replace trigger jobs_schedule before insert on queue_pg.jobs
  for each row when (new.state = 'queued' and new.run_at > queue_pg.now())
  execute function queue_pg.jobs_schedule();
