-- breaking: no
-- Jobs that ask for it share what identical work, of the same kind and payload, has made or is making.

-- Nullable: nothing is rewritten, and an INSERT that does not name them pays nothing.
alter table queue_pg.jobs
  add column cache_key bytea,
  add column cached_from uuid;
alter table queue_pg.finished_jobs
  add column cache_key bytea,
  add column cached_from uuid;

comment on column queue_pg.jobs.cache_key is
  'SHA-256 of organisation, kind, payload and version of a job that takes part in the cache; see queue_pg.cache_key().';
comment on column queue_pg.jobs.cached_from is 'The job whose result this one is about to end with.';
comment on column queue_pg.finished_jobs.cache_key is 'What it was, or could have been, answered by.';
comment on column queue_pg.finished_jobs.cached_from is 'The job that did the work, when this one did not run: the result is a copy of its.';

-- Those that wait for the job which does the same work, in the order in which they would go next. No others have an entry.
create index jobs_sharing on queue_pg.jobs (cache_key, priority desc, run_at, id)
  where state = 'waiting' and cache_key is not null;

create table queue_pg.cache_entries (
  cache_key bytea primary key constraint cache_entries_key_length check (octet_length(cache_key) = 32),
  org text not null,
  kind text not null,
  job_id uuid,
  answer_id uuid,
  answered_at timestamptz,
  answer_until timestamptz,
  constraint cache_entries_answer_whole check (
    (answer_id is null) = (answered_at is null) and (answer_id is null) = (answer_until is null))
) with (
  -- Rewritten by every job that does the work: the new version stays on the page, unless the index below has it.
  fillfactor = 70
);
create index cache_entries_forgotten on queue_pg.cache_entries (answer_until) where job_id is null;

comment on table queue_pg.cache_entries is
  'Work that jobs share, by its key: which job does it now, and which has done it last. One row for each key.';
comment on column queue_pg.cache_entries.job_id is 'The live job that does the work; null: none does.';
comment on column queue_pg.cache_entries.answer_id is 'The completed job that others are answered from; null: there is none.';
comment on column queue_pg.cache_entries.answered_at is 'When that job ended: its age counts from here.';
comment on column queue_pg.cache_entries.answer_until is 'End of the retention of that job, and so of the answer.';

-- Without a key, which inserts of two transactions would wait for each other over. Mostly empty.
create table queue_pg.unsettled_cache (cache_key bytea not null);
alter table queue_pg.unsettled_cache replica identity full;

comment on table queue_pg.unsettled_cache is
  'Entries to be looked at by maintenance: they were locked when their job ended, or too many were waiting for it.';

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
  null::timestamptz as finished_at, j.rerun_of, j.cached_from
from queue_pg.jobs j
union all
select
  f.id, f.org, f.queue, f.kind, f.state, f.priority, f.run_at, f.payload, f.result, f.error, f.attempt,
  f.max_attempts, f.lease_token, null, f.worker_id, f.timeout, f.expires_at, f.unique_key, f.limit_key, f.cost,
  f.parent_id, f.batch_id, f.tags, f.metadata, f.traceparent, f.created_at, f.started_at, f.finished_at, f.rerun_of,
  f.cached_from
from queue_pg.finished_jobs f
where f.retain_until > queue_pg.now();

-- Made anew by functions/submit.sql with more parameters, whatever parameters it had.
do $do$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
    where p.proname = 'submit' and p.pronamespace = 'queue_pg'::regnamespace
  loop
    execute format('drop function %s', v_function);
  end loop;
end
$do$;
