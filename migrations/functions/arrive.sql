-- What an INSERT into jobs needs beyond the row itself.
--
-- One trigger for all of it, because each trigger costs an INSERT 5 microseconds by being there, and its WHEN keeps the
-- function off ordinary rows at the price of a few comparisons: a job that starts later than it is made, a queue that is
-- armed, a unique key, or a lease of the row's own making, which nobody would hold. BEFORE, or a job put off would leave
-- a dead entry in the claim index, ahead of all others if its priority is high.
--
-- The function has no SET of search_path: it would cost more than all the rest. Instead every name has its schema, and
-- what needs an operator is in functions whose bodies were bound when they were made.

create or replace function queue_pg.starts_later(state queue_pg.job_state, run_at timestamptz) returns boolean
language sql volatile parallel safe
return state = 'queued' and run_at > queue_pg.now();

create or replace function queue_pg.is_hinted(state queue_pg.job_state, queue text) returns boolean
language sql volatile parallel safe
return state = 'queued' and queue_pg.is_armed(queue);

create or replace function queue_pg.is_scheduled(state queue_pg.job_state) returns boolean
language sql immutable parallel safe
return state = 'scheduled';

create or replace function queue_pg.jobs_arrive() returns trigger
language plpgsql
as $$
begin
  if new.lease_expires_at is not null then
    perform queue_pg.raise_invalid('state', 'a lease is given by queue_pg.claim() alone');
  end if;
  if new.unique_key is not null then
    perform queue_pg.keep_unique_key(new.org, new.unique_key, new.id, new.queue, new.kind, new.payload);
  end if;
  if queue_pg.starts_later(new.state, new.run_at) then
    new.state := 'scheduled';
  elsif queue_pg.is_hinted(new.state, new.queue) then
    perform pg_catalog.pg_notify('queue_pg_wake', new.queue);
  end if;
  if queue_pg.is_scheduled(new.state) then
    perform queue_pg.wake_due(new.run_at);
  end if;
  return new;
end
$$;

create or replace trigger jobs_arrive before insert on queue_pg.jobs
  for each row when (
    new.run_at > new.created_at or new.unique_key is not null or new.lease_expires_at is not null
    -- queue_pg.is_armed(new.queue), written out: it would be unfolded anew by every INSERT.
    or pg_sequence_last_value('queue_pg.armed') >> (hashtext(new.queue) & 31) & 1 = 1)
  execute function queue_pg.jobs_arrive();
