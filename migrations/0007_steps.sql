-- breaking: no
-- Steps of jobs and the events that jobs wait for; jobs that were run again as new ones.

-- Rows of their own and not a column of the job: each is written once, when it is done, and a job that has none
-- costs nothing.
create table queue_pg.job_steps (
  job_id uuid not null,
  name text not null,
  type text not null check (type in ('step', 'sleep', 'event')),
  result jsonb,
  timed_out boolean not null default false,
  until timestamptz,
  attempt integer not null,
  lease_token bigint not null,
  begun_at timestamptz not null default queue_pg.now(),
  finished_at timestamptz,
  primary key (job_id, name)
);

comment on table queue_pg.job_steps is
  'What the handler of a job need not do again: finished steps, sleeps and events, and those that it waits for.';
comment on column queue_pg.job_steps.name is 'Its name in the handler: 1 to 200 characters, one of a kind in the job.';
comment on column queue_pg.job_steps.type is 'step: a function''s result is kept; sleep: until a moment; event: until a signal.';
comment on column queue_pg.job_steps.result is 'What the step returned, or the payload of the signal.';
comment on column queue_pg.job_steps.timed_out is 'The event did not come in time, and the handler has been told so.';
comment on column queue_pg.job_steps.until is 'End of a sleep or of the wait for an event; null: no end.';
comment on column queue_pg.job_steps.attempt is 'The attempt that reached it last.';
comment on column queue_pg.job_steps.lease_token is 'The claim that reached it last; a job waits only for what its last claim has reached.';
comment on column queue_pg.job_steps.begun_at is 'When it was first reached; of a step, when it was saved.';
comment on column queue_pg.job_steps.finished_at is 'Null: the job waits, or waited, for it.';

create table queue_pg.job_signals (
  job_id uuid not null,
  name text not null,
  payload jsonb,
  at timestamptz not null default queue_pg.now(),
  primary key (job_id, name)
);

comment on table queue_pg.job_signals is 'Events that were signalled to jobs; the first of a name counts. See queue_pg.signal().';
comment on column queue_pg.job_signals.name is 'The event, as in job.wait_for_event(name).';

-- Nothing of it is written when a job ends, so that the end of a job costs no look for it.
create table queue_pg.stepped_jobs (
  job_id uuid primary key,
  steps integer not null default 0,
  signals integer not null default 0,
  bytes bigint not null default 0,
  look_at timestamptz not null
) with (fillfactor = 50);
create index stepped_jobs_look on queue_pg.stepped_jobs (look_at);

comment on table queue_pg.stepped_jobs is 'Which jobs have steps or signals, how many, and when maintenance looks whether they may be forgotten.';
comment on column queue_pg.stepped_jobs.bytes is 'Size of their results and payloads, as text.';

-- Whose job this is a rerun of.
alter table queue_pg.jobs add column rerun_of uuid;
alter table queue_pg.finished_jobs add column rerun_of uuid;

comment on column queue_pg.jobs.rerun_of is 'The job that this one runs again, for comparison; see queue_pg.rerun().';
comment on column queue_pg.finished_jobs.rerun_of is 'The job that this one ran again.';

-- Appended only: what reads the view need not be made again.
create or replace view queue_pg.all_jobs as
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
  null::timestamptz as finished_at, j.rerun_of
from queue_pg.jobs j
union all
select
  f.id, f.org, f.queue, f.kind, f.state, f.priority, f.run_at, f.payload, f.result, f.error, f.attempt,
  f.max_attempts, f.lease_token, null, f.worker_id, f.timeout, f.expires_at, f.unique_key, f.limit_key, f.cost,
  f.parent_id, f.batch_id, f.tags, f.metadata, f.traceparent, f.created_at, f.started_at, f.finished_at, f.rerun_of
from queue_pg.finished_jobs f
where f.retain_until > queue_pg.now();

-- Made anew by functions/control.sql with another parameter.
drop function if exists queue_pg.retry(uuid, integer);
