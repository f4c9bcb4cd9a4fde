-- breaking: no
-- Work that starts by the clock: schedules, and which of their fires have made a job.

create table queue_pg.schedules (
  id uuid primary key default queue_pg.uuid7(),
  org queue_pg.org not null default 'default',
  name text not null constraint schedules_name_length check (length(name) between 1 and 200),
  cron text,
  every interval,
  at timestamptz,
  time_zone text not null default 'UTC',
  starts_at timestamptz,
  ends_at timestamptz,
  jitter interval not null default '0',
  missed text not null default 'once' constraint schedules_missed_word check (missed in ('skip', 'once', 'all')),
  paused boolean not null default false,
  kind queue_pg.kind not null,
  queue queue_pg.queue not null default 'default',
  payload queue_pg.payload not null default '{}',
  priority smallint not null default 0,
  max_attempts queue_pg.max_attempts,
  timeout queue_pg.timeout,
  tags queue_pg.tags not null default '{}',
  metadata queue_pg.metadata not null default '{}',
  origin text not null default 'user' constraint schedules_origin_word check (origin in ('user', 'code')),
  next_fire_at timestamptz,
  last_fire_at timestamptz,
  last_job_id uuid,
  error jsonb,
  created_at timestamptz not null default queue_pg.now(),
  constraint schedules_one_timing check (num_nonnulls(cron, every, at) = 1),
  constraint schedules_name unique (org, name)
) with (
  -- Rewritten at every fire: its versions stay on one page.
  fillfactor = 70
);
-- What maintenance asks each time it looks. A paused or finished schedule is not in it.
create index schedules_due on queue_pg.schedules (next_fire_at) where next_fire_at is not null;

comment on table queue_pg.schedules is
  'Jobs that start by the clock: by cron expression, interval or once. Make them with queue_pg.schedule() or a plain INSERT.';
comment on column queue_pg.schedules.org is 'The tenant.';
comment on column queue_pg.schedules.name is 'What people call it; one of its name per org, without slashes.';
comment on column queue_pg.schedules.cron is 'Five fields: minute hour day month weekday. Exactly one of cron, every and at is set.';
comment on column queue_pg.schedules.every is
  'A length of time from 1 s on, counted from starts_at, else created_at; a day is 24 hours.';
comment on column queue_pg.schedules.at is 'The one moment of a schedule that fires once.';
comment on column queue_pg.schedules.time_zone is 'In which cron is read: UTC, or a name with a slash such as Europe/Berlin.';
comment on column queue_pg.schedules.starts_at is 'No fire before this moment; that of every is the first.';
comment on column queue_pg.schedules.ends_at is 'No fire after this moment.';
comment on column queue_pg.schedules.jitter is 'Each job starts up to this long after its fire, at random.';
comment on column queue_pg.schedules.missed is
  'What becomes of fires that nobody was there for: skip, once (one job for all), all (a job each, the latest 1,000).';
comment on column queue_pg.schedules.paused is 'No fires, and none made up for later. Set by pause_schedule().';
comment on column queue_pg.schedules.payload is
  'Of the jobs; {{ schedule.fire_at }} and {{ schedule.name }} in its texts are filled in.';
comment on column queue_pg.schedules.metadata is 'Of the jobs, which get {"schedule": {"name", "fire_at"}} in addition.';
comment on column queue_pg.schedules.origin is
  'code: workers register it from the code of a task and keep it as that says; user: they leave it alone.';
comment on column queue_pg.schedules.next_fire_at is 'The next fire; null: paused, or there is none. Worked out when left null.';
comment on column queue_pg.schedules.last_fire_at is 'The latest fire that made a job.';
comment on column queue_pg.schedules.last_job_id is 'The job made last, by a fire or by run_schedule_now().';
comment on column queue_pg.schedules.error is 'Why the last fire made no job: {"code", "message", "fire_at"}; null: it did.';

create table queue_pg.schedule_fires (
  schedule_id uuid not null references queue_pg.schedules (id) on delete cascade,
  fire_at timestamptz not null,
  job_id uuid,
  primary key (schedule_id, fire_at)
);

comment on table queue_pg.schedule_fires is
  'Which fires have made a job: each does once, whoever looks and whatever the clock does. Kept for a week.';
comment on column queue_pg.schedule_fires.fire_at is 'The moment the schedule names, not the one at which somebody noticed.';
comment on column queue_pg.schedule_fires.job_id is 'The job it made.';
