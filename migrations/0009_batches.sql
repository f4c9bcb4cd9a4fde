-- breaking: no
-- Batches: any number of jobs under one name, with counts, callbacks at the end, and cancel and retry as a whole.

-- What its jobs changed last is in batch_counters; readers add it, maintenance folds it into the row. So those who finish
-- jobs never wait for each other, and nobody but maintenance rewrites the row while jobs run.
create table queue_pg.batches (
  id uuid primary key default queue_pg.uuid7(),
  org text not null default 'default' constraint batches_org_length check (length(org) between 1 and 200),
  name text constraint batches_name_length check (length(name) between 1 and 200),
  state text not null default 'open'
    constraint batches_state_known check (state in ('open', 'closed', 'completed', 'failed', 'cancelled')),
  run integer not null default 1,
  total bigint,
  completed bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  on_complete jsonb constraint batches_on_complete_size check (pg_column_size(on_complete) <= 65536),
  on_failed jsonb constraint batches_on_failed_size check (pg_column_size(on_failed) <= 65536),
  on_all jsonb constraint batches_on_all_size check (pg_column_size(on_all) <= 65536),
  callback_ids uuid[] not null default '{}',
  callback_error text,
  metadata queue_pg.metadata not null default '{}',
  created_at timestamptz not null default queue_pg.now(),
  closed_at timestamptz,
  cancelled_at timestamptz,
  finished_at timestamptz,
  constraint batches_state_total check ((state = 'open') = (total is null)),
  constraint batches_state_finished check ((state in ('completed', 'failed', 'cancelled')) = (finished_at is not null))
) with (
  -- Counts are folded in place, without an entry in an index.
  fillfactor = 50
);
create index batches_closed on queue_pg.batches (id) where state = 'closed';
create index batches_forgotten on queue_pg.batches (finished_at) where finished_at is not null;

comment on table queue_pg.batches is
  'Batches of jobs. Read them in the view batch_progress: what the newest finishes changed is in batch_counters.';
comment on column queue_pg.batches.state is
  'open: takes jobs; closed: takes no more, some are left; completed: all did; failed: ended with a job failed or cancelled; cancelled: as a whole.';
comment on column queue_pg.batches.run is 'Grows when a job of a finished batch is retried: the batch then ends, and calls back, once more.';
comment on column queue_pg.batches.total is 'How many jobs it has; null while it is open.';
comment on column queue_pg.batches.completed is 'As of the last fold; the view batch_progress has the count as of now.';
comment on column queue_pg.batches.on_complete is 'Job to submit when all have completed: {"kind", "payload", "queue", ...}.';
comment on column queue_pg.batches.on_failed is 'Job to submit when it ends with a job failed or cancelled.';
comment on column queue_pg.batches.on_all is 'Job to submit when it ends, whichever way.';
comment on column queue_pg.batches.callback_ids is 'The jobs that its last end submitted.';
comment on column queue_pg.batches.callback_error is 'Why they could not be submitted.';
comment on column queue_pg.batches.metadata is 'The submitter''s own object; callbacks get it.';
comment on column queue_pg.batches.cancelled_at is 'When it was cancelled as a whole.';

create table queue_pg.batch_counters (
  batch_id uuid not null,
  completed bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0
) with (
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0
);
create index batch_counters_batch on queue_pg.batch_counters (batch_id);
-- Rows are deleted without a key, which a publication of all tables forbids otherwise.
alter table queue_pg.batch_counters replica identity full;

comment on table queue_pg.batch_counters is
  'How many jobs of a batch ended in each state, as changes to be summed up: one for each statement that finished some.';

-- Jobs without a batch have no entry in any of these.
create index jobs_batch on queue_pg.jobs (batch_id, id) where batch_id is not null;
create index finished_jobs_batch on queue_pg.finished_jobs (batch_id, id) where batch_id is not null;
create index finished_jobs_batch_unsuccessful on queue_pg.finished_jobs (batch_id, id)
  where batch_id is not null and state in ('failed', 'cancelled');

comment on column queue_pg.jobs.batch_id is 'The batch this job belongs to; it has to be open when the job is added.';

-- Made anew by functions/submit.sql with one more parameter, whatever parameters it had.
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
