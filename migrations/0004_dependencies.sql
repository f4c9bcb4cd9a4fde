-- breaking: no
-- A job may wait for others, its parents. functions/dependencies.sql says how it is told of their ends.

alter table queue_pg.jobs
  add column parents_left queue_pg.counter,
  add column awaited boolean not null default false;
alter table queue_pg.finished_jobs add column parents_left integer;

comment on column queue_pg.jobs.parents_left is
  'Parents that have not ended yet; 0 since it was released to run; null: it has no parents.';
comment on column queue_pg.jobs.awaited is 'Some job waits for the end of this one: it is a parent in queue_pg.dependencies.';
comment on column queue_pg.finished_jobs.parents_left is
  'Null: it had no parents. Above 0: it ended before it was released, and its payload is still the template.';

create table queue_pg.dependencies (
  child_id uuid not null,
  name text not null constraint dependencies_name_form check (name ~ '^[A-Za-z0-9_-]{1,100}$'),
  parent_id uuid not null,
  on_unsuccessful text not null default 'cancel'
    constraint dependencies_on_unsuccessful_word check (on_unsuccessful in ('cancel', 'run', 'fail')),
  outcome queue_pg.job_state,
  primary key (child_id, name)
) with (fillfactor = 85);
create index dependencies_parent on queue_pg.dependencies (parent_id);

comment on table queue_pg.dependencies is 'Which job waits for which: one row for each child and parent, kept as long as the child is.';
comment on column queue_pg.dependencies.child_id is 'The job that waits.';
comment on column queue_pg.dependencies.name is 'What templates of the child call the parent: {{ parents.<name>.output }}.';
comment on column queue_pg.dependencies.parent_id is 'The job that is waited for.';
comment on column queue_pg.dependencies.on_unsuccessful is
  'When the parent fails or is cancelled: cancel the child, run it all the same, or fail it.';
comment on column queue_pg.dependencies.outcome is 'How the parent ended, as the child was told; null: it has not ended.';

-- Without a key, which inserts of two transactions would wait for each other over. Mostly empty.
create table queue_pg.unsettled (child_id uuid not null);
alter table queue_pg.unsettled replica identity full;

comment on table queue_pg.unsettled is
  'Children to be looked at again by maintenance: they were locked when a parent ended, or there were too many.';

create table queue_pg.ended_children (
  child_id uuid not null,
  expires_at timestamptz not null
);
alter table queue_pg.ended_children replica identity full;
create index ended_children_expiry on queue_pg.ended_children (expires_at);

comment on table queue_pg.ended_children is 'When the rows of a finished child in queue_pg.dependencies may be forgotten.';

alter table queue_pg.unique_keys add column template_md5 text;

comment on column queue_pg.unique_keys.template_md5 is
  'Of the payload as it was submitted, when its templates have been filled in since: the same submission is known by it.';

-- Made anew by functions/*.sql, with more parameters.
drop function if exists queue_pg.retire(uuid[], queue_pg.job_state[], jsonb[], jsonb[], bigint[]);
drop function if exists queue_pg.submit(
  text, jsonb, text, integer, timestamptz, interval, integer, interval, timestamptz, text, text[], jsonb, text, text);
