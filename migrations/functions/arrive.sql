-- What an INSERT into jobs needs beyond the row itself.
--
-- One trigger for all of it, because each costs an INSERT 3 microseconds by being there. Its first question keeps it short
-- for ordinary rows: a job that starts later than it is made, a queue that is armed or an observer, a queue that is draining, a unique key, a batch, or a
-- lease of the row's own making, which nobody would hold. Asked in the function, whose plan a session keeps, and not in a WHEN, which
-- every INSERT statement parses and plans anew: 6 microseconds instead of 12, for 0.7 more a row of a COPY. BEFORE, or a
-- job put off would leave a dead entry in the claim index, ahead of all others if its priority is high.
--
-- The function has no SET of search_path: it would cost more than all the rest. Instead every name and operator has its
-- schema, and what else needs an operator is in functions whose bodies were bound when they were made.

create or replace function queue_pg.starts_later(state queue_pg.job_state, run_at timestamptz) returns boolean
language sql volatile parallel safe
return state = 'queued' and run_at > queue_pg.now();

create or replace function queue_pg.is_hinted(state queue_pg.job_state, queue text) returns boolean
language sql volatile parallel safe
return state = 'queued' and queue_pg.is_armed(queue);

create or replace function queue_pg.is_scheduled(state queue_pg.job_state) returns boolean
language sql immutable parallel safe
return state = 'scheduled';

-- While any queue drains, a role that may do nothing but INSERT has to be answered too: it may know which do.
create or replace view queue_pg.draining with (security_barrier) as
select q.org, q.queue from queue_pg.queues q where q.draining;

comment on view queue_pg.draining is 'The queues that refuse new jobs; for every role.';
grant select on queue_pg.draining to public;

-- Whether a queue is draining, and this is no job that belongs to those it has.
create or replace function queue_pg.refuses_jobs(org text, queue text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(current_setting('queue_pg.continuing', true), '') <> 'on'
    and exists (select from queue_pg.draining d where d.org = refuses_jobs.org and d.queue = refuses_jobs.queue);
end
$$;

create or replace function queue_pg.jobs_arrive() returns trigger
language plpgsql
as $$
begin
  if not (
    new.run_at operator(pg_catalog.>) new.created_at or new.unique_key is not null or new.lease_expires_at is not null
    or new.batch_id is not null
    -- queue_pg.is_armed(new.queue), queue_pg.is_observed() or that some queue is draining, written out
    or pg_catalog.pg_sequence_last_value('queue_pg.armed') operator(pg_catalog.&) (
      (1::pg_catalog.int8 operator(pg_catalog.<<) (pg_catalog.hashtext(new.queue) operator(pg_catalog.&) 31))
      operator(pg_catalog.|) 3458764513820540928) operator(pg_catalog.<>) 0
  ) then
    return new;
  end if;
  if new.lease_expires_at is not null then
    perform queue_pg.raise_invalid('state', 'a lease is given by queue_pg.claim() alone');
  end if;
  -- One that has events was there before.
  if pg_catalog.pg_sequence_last_value('queue_pg.armed') operator(pg_catalog.&) 1152921504606846976 operator(pg_catalog.<>) 0
    and new.last_event_seq operator(pg_catalog.=) 0 and queue_pg.refuses_jobs(new.org, new.queue) then
    perform queue_pg.raise_draining(new.queue);
  end if;
  if new.batch_id is not null then
    perform queue_pg.join_batch(new.batch_id, new.id, new.org);
  end if;
  if new.unique_key is not null then
    perform queue_pg.keep_unique_key(new.org, new.unique_key, new.id, new.queue, new.kind, new.payload);
  end if;
  if queue_pg.starts_later(new.state, new.run_at) then
    new.state := 'scheduled';
  elsif queue_pg.is_hinted(new.state, new.queue) then
    perform queue_pg.send_hint('queue_pg_wake', new.queue);
  end if;
  if queue_pg.is_scheduled(new.state) then
    perform queue_pg.wake_due(new.run_at);
  end if;
  -- One that has events was there before: a retry, which is told as such.
  if new.last_event_seq operator(pg_catalog.=) 0 and queue_pg.is_observed() then
    perform queue_pg.tell_transition(new.id, new.org, new.queue, new.kind, 'submitted', 1);
  end if;
  return new;
end
$$;

create or replace trigger jobs_arrive before insert on queue_pg.jobs
  for each row execute function queue_pg.jobs_arrive();
