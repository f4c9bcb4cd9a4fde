-- breaking: no
-- An INSERT into jobs costs half of what it did, and sends NOTIFY only where an idle listener has asked for it.

-- The columns' checks move into domains, like that of the payload. CHECKs of a table are parsed anew by every
-- statement and evaluated for the whole row by every update: an INSERT of one job spent 50 of 100 microseconds on
-- seventeen of them. A domain's are planned once a session and look at values that are assigned.
create domain queue_pg.org as text constraint jobs_org_length check (length(value) between 1 and 200);
create domain queue_pg.queue as text constraint jobs_queue_length check (length(value) between 1 and 200);
create domain queue_pg.kind as text constraint jobs_kind_length check (length(value) between 1 and 200);
create domain queue_pg.unique_key as text constraint jobs_unique_key_length check (length(value) between 1 and 255);
create domain queue_pg.limit_key as text constraint jobs_limit_key_length check (length(value) between 1 and 255);
create domain queue_pg.traceparent as text constraint jobs_traceparent_length check (length(value) <= 255);
create domain queue_pg.run_at as timestamptz
  constraint jobs_run_at_range check (value >= '0001-01-01+00' and value < '9999-12-31+00');
create domain queue_pg.created_at as timestamptz
  constraint jobs_created_at_range check (value >= '0001-01-01+00' and value < '9999-12-31+00');
create domain queue_pg.expires_at as timestamptz
  constraint jobs_expires_at_range check (value >= '0001-01-01+00' and value < '9999-12-31+00');
create domain queue_pg.timeout as interval
  constraint jobs_timeout_range check (queue_pg.is_duration(value, '1 millisecond', '365 days'));
create domain queue_pg.max_attempts as integer constraint jobs_max_attempts_range check (value between 1 and 1000);
create domain queue_pg.cost as integer constraint jobs_cost_range check (value >= 0);
-- What the functions count up stays within what its type can hold: one row at the end of a range, made by hand, would
-- stop the statements that add to it for all jobs. The functions stop adding at the end of these.
create domain queue_pg.counter as integer constraint jobs_counter_range check (value between 0 and 1000000000);
create domain queue_pg.lease_token as bigint
  constraint jobs_lease_token_range check (value between 0 and 1000000000000000000);
create domain queue_pg.tags as text[]
  constraint jobs_tags_count check (cardinality(value) <= 64)
  constraint jobs_tags_size check (pg_column_size(value) <= 16384 and array_position(value, null) is null);

-- Whatever reads jobs by its columns is made again: the view below, and what comes from functions/ by its files.
drop view if exists queue_pg.overview, queue_pg.running, queue_pg.failures;
drop function if exists queue_pg.job(uuid), queue_pg.cancel(uuid, text), queue_pg.retry(uuid, integer);
drop view queue_pg.all_jobs;
drop trigger if exists jobs_wake on queue_pg.jobs;
drop trigger if exists jobs_admit on queue_pg.jobs;
drop trigger if exists jobs_schedule on queue_pg.jobs;
drop trigger if exists jobs_unique_key on queue_pg.jobs;
drop function if exists
  queue_pg.wake(), queue_pg.jobs_wake(), queue_pg.jobs_admit(), queue_pg.jobs_schedule(),
  queue_pg.jobs_unique_key(),
  queue_pg.retire(uuid[], queue_pg.job_state[], jsonb[], jsonb[]),
  queue_pg.claim(text, text[], text[], integer, interval, text);

alter table queue_pg.jobs
  drop constraint jobs_run_at_range, drop constraint jobs_created_at_range, drop constraint jobs_max_attempts_range,
  drop constraint jobs_cost_range, drop constraint jobs_state_live, drop constraint jobs_org_length,
  drop constraint jobs_queue_length, drop constraint jobs_kind_length, drop constraint jobs_timeout_range,
  drop constraint jobs_expires_at_range, drop constraint jobs_unique_key_length,
  drop constraint jobs_limit_key_length, drop constraint jobs_tags_count, drop constraint jobs_tags_size,
  drop constraint jobs_traceparent_length, drop constraint jobs_running_leased;
alter table queue_pg.jobs
  alter run_at type queue_pg.run_at,
  alter created_at type queue_pg.created_at,
  alter lease_token type queue_pg.lease_token,
  alter attempt type queue_pg.counter,
  alter max_attempts type queue_pg.max_attempts,
  alter lease_losses type queue_pg.counter,
  alter last_event_seq type queue_pg.counter,
  alter cost type queue_pg.cost,
  alter org type queue_pg.org,
  alter queue type queue_pg.queue,
  alter kind type queue_pg.kind,
  alter timeout type queue_pg.timeout,
  alter expires_at type queue_pg.expires_at,
  alter unique_key type queue_pg.unique_key,
  alter limit_key type queue_pg.limit_key,
  alter tags type queue_pg.tags,
  alter traceparent type queue_pg.traceparent,
  -- One CHECK is left; the states are an enum in the order of a job's life, so that <= 'running' means live.
  add constraint jobs_state_live check (state <= 'running' and (state = 'running') = (lease_expires_at is not null));

comment on column queue_pg.jobs.max_attempts is
  'Attempts allowed, the first included; null until the first claim sets the kind''s, else settings.max_attempts.';
comment on column queue_pg.jobs.timeout is
  'Longest run of one attempt; null until the first claim sets the kind''s, else settings.timeout.';
comment on column queue_pg.jobs.created_at is 'When it was submitted; leave it to its default.';

create view queue_pg.all_jobs as
select
  j.id, j.org::text, j.queue::text, j.kind::text, j.state, j.priority, j.run_at::timestamptz, j.payload::jsonb,
  null::jsonb as result, j.error, j.attempt::integer,
  coalesce(
    j.max_attempts,
    (select k.max_attempts from queue_pg.kinds k where k.kind = j.kind),
    (select s.max_attempts from queue_pg.settings s)) as max_attempts,
  j.lease_token::bigint, j.lease_expires_at, j.worker_id,
  coalesce(
    j.timeout,
    (select k.timeout from queue_pg.kinds k where k.kind = j.kind),
    (select s.timeout from queue_pg.settings s)) as timeout,
  j.expires_at::timestamptz, j.unique_key::text, j.limit_key::text, j.cost::integer, j.parent_id, j.batch_id,
  j.tags::text[], j.metadata::jsonb, j.traceparent::text, j.created_at::timestamptz, j.claimed_at as started_at,
  null::timestamptz as finished_at
from queue_pg.jobs j
union all
select
  f.id, f.org, f.queue, f.kind, f.state, f.priority, f.run_at, f.payload, f.result, f.error, f.attempt,
  f.max_attempts, f.lease_token, null, f.worker_id, f.timeout, f.expires_at, f.unique_key, f.limit_key, f.cost,
  f.parent_id, f.batch_id, f.tags, f.metadata, f.traceparent, f.created_at, f.started_at, f.finished_at
from queue_pg.finished_jobs f
where f.retain_until > queue_pg.now();

comment on view queue_pg.all_jobs is 'Every job that can be read, live or finished; queue_pg.job(id) is one of them.';

-- Which queues want a NOTIFY, as bits: see functions/wake.sql. A sequence, because it is read at the price of one page
-- look-up, changes at once for everybody whatever transactions are open, and leaves no dead rows behind.
create sequence queue_pg.armed as bigint minvalue 0 start 0;
select setval('queue_pg.armed', 0);

comment on sequence queue_pg.armed is
  'Who waits for a NOTIFY: bits 0 to 31 queues by the hash of their name, 62 maintenance. Not a counter.';

-- Counters are only added to: rows that a long transaction keeps dead must not lie in the way of every finish, and those
-- who finish must not wait for each other. Maintenance folds them.
alter table queue_pg.queue_counters drop constraint queue_counters_pkey, drop column shard;
alter table queue_pg.queue_counters reset (fillfactor);
alter table queue_pg.queue_counters replica identity full;

comment on table queue_pg.queue_counters is
  'How many finished jobs of each state are kept, as changes to be summed up; nobody counts history.';
