-- The raw loop's tables: what a queue with priorities, delays, leases and history cannot do without, and no more.
create table raw_jobs (
  id uuid primary key default uuidv7(),
  run_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  lease_expires_at timestamptz,
  lease_token bigint not null default 0,
  attempt integer not null default 0,
  max_attempts integer not null default 4,
  state text not null default 'queued',
  priority smallint not null default 0,
  queue text not null default 'default',
  kind text not null,
  worker text,
  payload jsonb not null
) with (fillfactor = 85);
create index raw_jobs_claim on raw_jobs (queue, priority desc, run_at, id) where state = 'queued';
create index raw_jobs_lease on raw_jobs (lease_expires_at) where state = 'running';
create table raw_history (
  id uuid primary key,
  run_at timestamptz not null,
  created_at timestamptz not null,
  started_at timestamptz not null,
  finished_at timestamptz not null,
  lease_token bigint not null,
  attempt integer not null,
  max_attempts integer not null,
  state text not null,
  priority smallint not null,
  queue text not null,
  kind text not null,
  worker text,
  payload jsonb not null,
  result jsonb
);
