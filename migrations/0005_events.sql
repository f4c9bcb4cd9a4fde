-- breaking: no
-- Everything that happens to a job is a numbered event, and what its handler says is too.

-- Until now the stored events alone were counted. From now on the submission is number 1.
update queue_pg.job_events set seq = -seq;
update queue_pg.job_events set seq = 1 - seq;
update queue_pg.jobs set last_event_seq = least(last_event_seq, 999999999) + 1 where last_event_seq > 0;
update queue_pg.finished_jobs set last_event_seq = least(last_event_seq, 999999999) + 1 where last_event_seq > 0;

-- Nullable or with a constant default: nothing is rewritten, and an INSERT that does not name them pays nothing.
alter table queue_pg.jobs
  add column followed boolean not null default false,
  add column promoted_at timestamptz,
  add column logged_token bigint,
  add column appended_events integer;
alter table queue_pg.finished_jobs
  add column promoted_at timestamptz,
  add column logged_token bigint;

-- Attempts that ended before now have left no row for their start, and get none afterwards.
update queue_pg.jobs set logged_token = lease_token where lease_expires_at is null and lease_token > 0;
update queue_pg.finished_jobs set logged_token = lease_token where state <> 'completed' and lease_token > 0;

comment on column queue_pg.jobs.last_event_seq is
  'Number of the newest row in job_events, 0 for none; queue_pg.events() adds those that have no row.';
comment on column queue_pg.jobs.followed is
  'Somebody reads the events as they come: each sends NOTIFY queue_pg_events. Set by queue_pg.follow().';
comment on column queue_pg.jobs.promoted_at is 'When it fell due, as long as no row in job_events says so.';
comment on column queue_pg.jobs.logged_token is 'The lease whose start is a row in job_events.';
comment on column queue_pg.jobs.appended_events is 'How many events its handlers have appended; settings.max_events bounds it.';
comment on column queue_pg.finished_jobs.promoted_at is 'When it fell due, if no row in job_events says so.';
comment on column queue_pg.finished_jobs.logged_token is 'The lease whose start is a row in job_events.';

comment on table queue_pg.job_events is
  'What was said and what happened to jobs besides the straight way. Dropped by the day; queue_pg.events(id) is the whole list.';
comment on column queue_pg.job_events.seq is 'Per job: 1 is the submission, which has no row; without gaps.';
comment on column queue_pg.job_events.type is 'log, progress, chunk, a type of the handler''s own, or a transition; docs/events.md lists them.';

create domain queue_pg.event_data as jsonb
  constraint events_data_object check (jsonb_typeof(value) = 'object')
  constraint events_data_size check (pg_column_size(value) <= 65536)
  constraint events_data_numbers check (queue_pg.json_is_printable(value));

comment on domain queue_pg.event_data is 'A JSON object up to 64 KiB without numbers that explode when written out.';

alter table queue_pg.settings add column max_events integer not null default 100000
  constraint settings_max_events_range check (max_events between 1 and 10000000);

comment on column queue_pg.settings.max_events is
  'Events that the handlers of one job may append; then comes one event truncated, and the rest is dropped.';

-- Made anew with one more parameter.
drop function if exists queue_pg.configure(
  interval, integer, interval, interval, interval, interval, integer, interval, boolean);

create table queue_pg.observers (
  id text primary key constraint observers_id_length check (length(id) between 1 and 200),
  until timestamptz not null
);

comment on table queue_pg.observers is
  'Processes that hear of every transition, as NOTIFY queue_pg_transitions. While there are none, none is sent.';
comment on column queue_pg.observers.until is 'Counts until then, unless renewed by queue_pg.observe().';
