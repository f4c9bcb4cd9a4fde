-- breaking: no
-- The queue's tables. People who look with psql start here: \d+ queue_pg.jobs, then docs/sql.md.
--
-- Live jobs are rows of `jobs`, kept narrow and few. A finished job moves to `finished_jobs`, which is partitioned
-- by the moment its retention ends, so that forgetting history is DROP of a partition and never a mass DELETE.
-- All writes go through the functions in functions/*.sql; a plain INSERT INTO queue_pg.jobs is the one exception.

-- Every decision about time asks this function. It is inlined to clock_timestamp(), which, unlike now(), moves inside
-- a transaction; tests replace it by a clock they can move.
create function queue_pg.now() returns timestamptz
language sql volatile parallel safe
return clock_timestamp();

comment on function queue_pg.now() is 'The queue''s clock: clock_timestamp(). Tests replace it with a movable one.';

-- RFC 9562 version 7: 48 bits of milliseconds, 12 bits of the fraction of that millisecond, 62 random bits. Ids made
-- at rising times sort by them, which makes `order by id` the order of submission.
create function queue_pg.uuid7_at(at timestamptz) returns uuid
language sql volatile parallel safe
return encode(
  substring(int8send(floor(extract(epoch from at) * 1000)::bigint) from 3 for 6)
  || int2send((28672 + floor((extract(epoch from at) * 1000 - floor(extract(epoch from at) * 1000)) * 4096))::int2)
  || substring(uuid_send(gen_random_uuid()) from 9 for 8),
  'hex')::uuid;

comment on function queue_pg.uuid7_at(timestamptz) is 'A UUIDv7 of the given moment.';

do $do$
begin
  if current_setting('server_version_num')::integer >= 180000 then
    create function queue_pg.uuid7() returns uuid language sql volatile parallel safe return uuidv7();
  else
    create function queue_pg.uuid7() returns uuid language sql volatile parallel safe
      return queue_pg.uuid7_at(clock_timestamp());
  end if;
end
$do$;

comment on function queue_pg.uuid7() is 'A new UUIDv7; the native one from PostgreSQL 18 on.';

-- Defined in the order in which a job passes through them.
create type queue_pg.job_state as enum (
  'scheduled', 'waiting', 'queued', 'running', 'completed', 'failed', 'cancelled');

comment on type queue_pg.job_state is
  'scheduled: due later, or a retry is; waiting: on parents; queued: claimable; running: leased to a worker; '
  'completed, failed, cancelled: finished. docs/states.md lists the legal edges.';

-- Finds the numbers that explode when written out: 1e131071 is 10 bytes of JSON and 131 kB as text, so that a small
-- payload could otherwise make a claim render gigabytes. What merely is too big for Python passes; it fails alone.
create function queue_pg.json_is_printable(value jsonb) returns boolean
language sql immutable parallel safe
return not value @? 'strict $.** ? (@ > 1e10000 || @ < -1e10000 || (@ < 1e-1000 && @ > -1e-1000 && @ != 0))';

comment on function queue_pg.json_is_printable(jsonb) is
  'False when a number in the document has more than some ten thousand digits written out.';

-- Domains and not CHECKs of the table, which would walk a large payload again at every heartbeat and promotion: a domain
-- is checked when a value is assigned, and only then.
create domain queue_pg.payload as jsonb
  constraint jobs_payload_size check (pg_column_size(value) <= 33554432)
  constraint jobs_payload_numbers check (queue_pg.json_is_printable(value));
create domain queue_pg.metadata as jsonb
  constraint jobs_metadata_object check (jsonb_typeof(value) = 'object')
  constraint jobs_metadata_size check (pg_column_size(value) <= 65536)
  constraint jobs_metadata_numbers check (queue_pg.json_is_printable(value));

comment on domain queue_pg.payload is 'JSON up to 32 MiB without numbers that explode when written out.';
comment on domain queue_pg.metadata is 'A JSON object up to 64 KiB without numbers that explode when written out.';

-- What the functions add to and subtract from must stay within what a timestamp can hold. Months and days are bounded
-- apart: an interval may hide a huge number of the one behind a huge negative number of the other.
create function queue_pg.is_duration(value interval, lowest interval, highest interval) returns boolean
language sql immutable parallel safe
return value >= lowest and value <= highest
  and extract(year from value) = 0 and extract(month from value) = 0
  and extract(day from value) between 0 and 36525 and extract(hour from value) between 0 and 1000000
  and extract(minute from value) between 0 and 59 and extract(second from value) between 0 and 60;

comment on function queue_pg.is_duration(interval, interval, interval) is
  'True for a plain length of time between the bounds: no months, nothing negative.';

create table queue_pg.settings (
  one_row boolean primary key default true constraint settings_one_row check (one_row),
  retention interval not null default '30 days'
    constraint settings_retention_range check (queue_pg.is_duration(retention, '1 millisecond', '36500 days')),
  events_retention interval not null default '7 days'
    constraint settings_events_retention_range check (queue_pg.is_duration(events_retention, '1 day', '36500 days')),
  max_attempts integer not null default 4
    constraint settings_max_attempts_range check (max_attempts between 1 and 1000),
  timeout interval not null default '300 seconds'
    constraint settings_timeout_range check (queue_pg.is_duration(timeout, '1 millisecond', '365 days')),
  lease interval not null default '30 seconds'
    constraint settings_lease_range check (queue_pg.is_duration(lease, '100 milliseconds', '1 day')),
  retry_base interval not null default '1 second'
    constraint settings_retry_base_range check (queue_pg.is_duration(retry_base, '0', '1 day')),
  retry_cap interval not null default '10 minutes'
    constraint settings_retry_cap_range check (queue_pg.is_duration(retry_cap, '0', '30 days')),
  max_lease_losses integer not null default 3
    constraint settings_max_lease_losses_range check (max_lease_losses between 1 and 1000),
  notify boolean not null default true
);
insert into queue_pg.settings default values;

comment on table queue_pg.settings is 'Instance-wide defaults, one row; change them with queue_pg.configure().';
comment on column queue_pg.settings.retention is 'How long a finished job stays readable, unless its queue says otherwise.';
comment on column queue_pg.settings.events_retention is 'How long job_events are kept; whole days are dropped.';
comment on column queue_pg.settings.max_attempts is 'Attempts of a job, the first included, unless it or its kind says otherwise.';
comment on column queue_pg.settings.timeout is 'Longest run of one attempt, unless the job or its kind says otherwise.';
comment on column queue_pg.settings.lease is 'How long a claim holds without a heartbeat, unless claim or queue says otherwise.';
comment on column queue_pg.settings.retry_base is 'Wait before the first retry; doubles with each, with jitter.';
comment on column queue_pg.settings.retry_cap is 'Longest wait between two attempts.';
comment on column queue_pg.settings.max_lease_losses is 'A job whose worker vanished this often fails with lease_lost.';
comment on column queue_pg.settings.notify is 'Whether NOTIFY is sent at all; polling alone is equally correct.';

create table queue_pg.queues (
  org text not null default 'default' constraint queues_org_length check (length(org) between 1 and 200),
  queue text not null constraint queues_queue_length check (length(queue) between 1 and 200),
  paused_until timestamptz,
  retention interval constraint queues_retention_range check (queue_pg.is_duration(retention, '1 millisecond', '36500 days')),
  lease interval constraint queues_lease_range check (queue_pg.is_duration(lease, '100 milliseconds', '1 day')),
  primary key (org, queue)
);

comment on table queue_pg.queues is 'What differs from the defaults for one queue; a queue without a row is a queue too.';
comment on column queue_pg.queues.paused_until is 'No claims before this moment; infinity = until resumed; null = not paused.';
comment on column queue_pg.queues.retention is 'How long its finished jobs stay readable; null = settings.retention.';
comment on column queue_pg.queues.lease is 'How long a claim holds without a heartbeat; null = settings.lease.';

create table queue_pg.kinds (
  kind text primary key constraint kinds_kind_length check (length(kind) between 1 and 200),
  schema jsonb,
  max_attempts integer constraint kinds_max_attempts_range check (max_attempts between 1 and 1000),
  timeout interval constraint kinds_timeout_range check (queue_pg.is_duration(timeout, '1 millisecond', '365 days')),
  retry_base interval constraint kinds_retry_base_range check (queue_pg.is_duration(retry_base, '0', '1 day')),
  retry_cap interval constraint kinds_retry_cap_range check (queue_pg.is_duration(retry_cap, '0', '30 days')),
  description text,
  registered_at timestamptz not null default queue_pg.now()
);

comment on table queue_pg.kinds is 'Which handlers exist, told by the workers that have them; null columns mean the defaults of settings.';
comment on column queue_pg.kinds.schema is 'JSON Schema of the payload, made from the handler''s parameters.';
comment on column queue_pg.kinds.retry_base is 'Wait before the first retry; doubles with each, with jitter.';
comment on column queue_pg.kinds.retry_cap is 'Longest wait between two attempts.';

insert into queue_pg.kinds (kind, description) values ('chat', 'One call of a chat model: messages in, text out.');

create table queue_pg.jobs (
  id uuid primary key default queue_pg.uuid7(),
  run_at timestamptz not null default queue_pg.now()
    constraint jobs_run_at_range check (run_at >= '0001-01-01+00' and run_at < '9999-12-31+00'),
  created_at timestamptz not null default queue_pg.now()
    constraint jobs_created_at_range check (created_at >= '0001-01-01+00' and created_at < '9999-12-31+00'),
  claimed_at timestamptz,
  lease_expires_at timestamptz,
  lease_token bigint not null default 0,
  attempt integer not null default 0,
  max_attempts integer constraint jobs_max_attempts_range check (max_attempts between 1 and 1000),
  lease_losses integer not null default 0,
  last_event_seq integer not null default 0,
  cost integer not null default 1 constraint jobs_cost_range check (cost >= 0),
  state queue_pg.job_state not null default 'queued'
    constraint jobs_state_live check (state in ('scheduled', 'waiting', 'queued', 'running')),
  priority smallint not null default 0,
  watched boolean not null default false,
  org text not null default 'default' constraint jobs_org_length check (length(org) between 1 and 200),
  queue text not null default 'default' constraint jobs_queue_length check (length(queue) between 1 and 200),
  kind text not null constraint jobs_kind_length check (length(kind) between 1 and 200),
  worker_id text,
  payload queue_pg.payload not null default '{}',
  error jsonb,
  timeout interval constraint jobs_timeout_range check (queue_pg.is_duration(timeout, '1 millisecond', '365 days')),
  expires_at timestamptz
    constraint jobs_expires_at_range check (expires_at >= '0001-01-01+00' and expires_at < '9999-12-31+00'),
  unique_key text constraint jobs_unique_key_length check (length(unique_key) between 1 and 255),
  limit_key text constraint jobs_limit_key_length check (length(limit_key) between 1 and 255),
  parent_id uuid,
  batch_id uuid,
  tags text[] not null default '{}' constraint jobs_tags_count check (cardinality(tags) <= 64)
    constraint jobs_tags_size check (pg_column_size(tags) <= 16384 and array_position(tags, null) is null),
  metadata queue_pg.metadata not null default '{}',
  traceparent text constraint jobs_traceparent_length check (length(traceparent) <= 255),
  constraint jobs_running_leased check ((state = 'running') = (lease_expires_at is not null))
) with (
  -- Room for the new version of a row on its own page, and a vacuum that keeps up with a table in which every row
  -- is rewritten twice and then deleted.
  fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.05,
  autovacuum_vacuum_cost_delay = 0
);

comment on table queue_pg.jobs is
  'Live jobs. INSERT INTO queue_pg.jobs (kind, payload) VALUES (...) is a complete submission; everything else has a default.';
comment on column queue_pg.jobs.id is 'UUIDv7: sorts by the time of submission.';
comment on column queue_pg.jobs.run_at is 'Not before this moment. In the future at insert: the job becomes scheduled.';
comment on column queue_pg.jobs.claimed_at is 'Start of the current or last attempt.';
comment on column queue_pg.jobs.lease_expires_at is 'The worker''s right to run ends here unless it heartbeats. Set exactly while running.';
comment on column queue_pg.jobs.lease_token is
  'The fence. Grows with every claim and is never reset; a write by a worker counts only with the token of its claim.';
comment on column queue_pg.jobs.attempt is 'Executions that count. Snooze, release and lost leases take theirs back, so this is no fence.';
comment on column queue_pg.jobs.max_attempts is 'Attempts allowed, the first included; null = the kind''s, else settings.max_attempts.';
comment on column queue_pg.jobs.lease_losses is 'How often a worker vanished with this job; settings.max_lease_losses ends it.';
comment on column queue_pg.jobs.last_event_seq is 'Number of the job''s newest row in job_events.';
comment on column queue_pg.jobs.cost is 'Units this job takes from its limit.';
comment on column queue_pg.jobs.state is 'scheduled, waiting, queued or running; docs/states.md has the edges.';
comment on column queue_pg.jobs.priority is 'Higher first. By name: critical 20, high 10, normal 0, low -10, batch -20.';
comment on column queue_pg.jobs.watched is 'Somebody waits for the end: it sends NOTIFY queue_pg_result. Set by queue_pg.watch().';
comment on column queue_pg.jobs.org is 'The tenant.';
comment on column queue_pg.jobs.queue is 'Named line of jobs; workers choose which they serve.';
comment on column queue_pg.jobs.kind is 'Which handler runs the job.';
comment on column queue_pg.jobs.worker_id is 'Who holds or last held the lease.';
comment on column queue_pg.jobs.payload is 'What the handler gets; any JSON up to 32 MiB.';
comment on column queue_pg.jobs.error is 'Why the last attempt did not complete: {"code", "message", ...}.';
comment on column queue_pg.jobs.timeout is 'Longest run of one attempt; null = the kind''s, else settings.timeout.';
comment on column queue_pg.jobs.expires_at is 'Deadline: no attempt starts after it; the job fails with code expired.';
comment on column queue_pg.jobs.unique_key is 'Idempotency: queue_pg.unique_keys lets one job at a time have it, per org.';
comment on column queue_pg.jobs.limit_key is 'Which limit the job counts against.';
comment on column queue_pg.jobs.parent_id is 'The job this one belongs to.';
comment on column queue_pg.jobs.batch_id is 'The batch this job belongs to.';
comment on column queue_pg.jobs.tags is 'Free labels to filter by.';
comment on column queue_pg.jobs.metadata is 'The submitter''s own object; queue-pg does not read it.';
comment on column queue_pg.jobs.traceparent is 'W3C trace context of the submitter.';

-- The key order is the claim's: one lane is (queue, org), and inside it ORDER BY priority DESC, run_at, id.
create index jobs_claim on queue_pg.jobs (queue, org, priority desc, run_at, id) where state = 'queued';
create index jobs_due on queue_pg.jobs (run_at) where state = 'scheduled';
create index jobs_lease on queue_pg.jobs (lease_expires_at) where state = 'running';
create index jobs_expiry on queue_pg.jobs (expires_at)
  where expires_at is not null and state in ('scheduled', 'waiting', 'queued');

create table queue_pg.finished_jobs (
  id uuid not null,
  run_at timestamptz not null,
  created_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz not null,
  retain_until timestamptz not null,
  lease_token bigint not null,
  attempt integer not null,
  max_attempts integer not null,
  lease_losses integer not null,
  last_event_seq integer not null,
  cost integer not null,
  state queue_pg.job_state not null
    constraint finished_jobs_state_finished check (state in ('completed', 'failed', 'cancelled')),
  priority smallint not null,
  org text not null,
  queue text not null,
  kind text not null,
  worker_id text,
  payload jsonb not null,
  result jsonb,
  error jsonb,
  timeout interval not null,
  expires_at timestamptz,
  unique_key text,
  limit_key text,
  parent_id uuid,
  batch_id uuid,
  tags text[] not null,
  metadata jsonb not null,
  traceparent text
) partition by range (retain_until);

-- Rows are deleted without a key (retry, sweeps), which a publication of all tables forbids otherwise.
alter table queue_pg.finished_jobs replica identity full;

-- Catches what no partition covers, so that a late maintenance or a jumping clock can never refuse an outcome.
create table queue_pg.finished_jobs_default partition of queue_pg.finished_jobs default;
alter table queue_pg.finished_jobs_default replica identity full;
create index finished_jobs_default_sweep on queue_pg.finished_jobs_default (retain_until);

create index finished_jobs_id on queue_pg.finished_jobs (id);
create index finished_jobs_unsuccessful on queue_pg.finished_jobs (queue, id) where state in ('failed', 'cancelled');

comment on table queue_pg.finished_jobs is
  'Finished jobs, partitioned by the end of their retention; a partition is dropped when its whole range has passed.';
comment on column queue_pg.finished_jobs.retain_until is 'Not shown after this moment: finished_at + retention of the queue then.';
comment on column queue_pg.finished_jobs.started_at is 'Start of the last attempt.';
comment on column queue_pg.finished_jobs.result is 'What the handler returned.';
comment on column queue_pg.finished_jobs.error is 'Why it did not complete: {"code", "message", ...}.';
comment on column queue_pg.finished_jobs.max_attempts is 'As it applied: the job''s, else the kind''s, else the default.';
comment on column queue_pg.finished_jobs.timeout is 'As it applied: the job''s, else the kind''s, else the default.';

create table queue_pg.job_events (
  job_id uuid not null,
  seq integer not null,
  at timestamptz not null default queue_pg.now(),
  type text not null,
  data jsonb,
  primary key (job_id, seq, at)
) partition by range (at);
create table queue_pg.job_events_default partition of queue_pg.job_events default;

comment on table queue_pg.job_events is
  'What happened to a job besides the straight way: failed attempts, snoozes, lost leases, retries, cancels. Dropped by the day.';
comment on column queue_pg.job_events.seq is 'Per job, from 1, without gaps.';

create table queue_pg.partitions (
  parent text not null,
  name text not null primary key,
  from_at timestamptz not null,
  to_at timestamptz not null,
  check (from_at < to_at)
);
create index partitions_range on queue_pg.partitions (parent, from_at);

comment on table queue_pg.partitions is 'The partitions that queue_pg.maintain_history() has made and will drop.';

create table queue_pg.unique_keys (
  org text not null,
  unique_key text not null,
  job_id uuid not null,
  expires_at timestamptz,
  primary key (org, unique_key)
);
create index unique_keys_expiry on queue_pg.unique_keys (expires_at) where expires_at is not null;

comment on table queue_pg.unique_keys is
  'Which job a unique key names. Apart from the jobs, because the key outlives the move of its job to finished_jobs.';
comment on column queue_pg.unique_keys.expires_at is 'End of the finished job''s retention; null while it lives.';

create table queue_pg.queue_counters (
  org text not null,
  queue text not null,
  shard smallint not null,
  completed bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  primary key (org, queue, shard)
) with (fillfactor = 50);

comment on table queue_pg.queue_counters is
  'How many finished jobs of each state are kept, so that nobody counts history; the sum over the shards is exact.';
comment on column queue_pg.queue_counters.shard is 'Backends spread over 16 rows, so that finishing workers do not wait for each other.';

create table queue_pg.workers (
  id text primary key,
  host text not null,
  pid integer not null,
  version text not null,
  queues text[] not null,
  kinds text[] not null,
  capacity integer not null,
  active integer not null default 0,
  processed bigint not null default 0,
  failed bigint not null default 0,
  stopping boolean not null default false,
  started_at timestamptz not null default queue_pg.now(),
  heartbeat_at timestamptz not null default queue_pg.now()
) with (fillfactor = 50);

comment on table queue_pg.workers is 'Worker processes; one is live while its heartbeat is younger than 60 s.';
comment on column queue_pg.workers.capacity is 'Jobs it runs at once.';
comment on column queue_pg.workers.active is 'Jobs it runs now.';
comment on column queue_pg.workers.processed is 'Attempts it has ended since its start.';
comment on column queue_pg.workers.failed is 'Attempts of those that did not complete.';

-- One shape for a job, live or finished. The effective limits are sub-selects, not joins, so that a reader that takes
-- the newest 50 ids looks them up 50 times and can walk the id indexes of both tables in order.
create view queue_pg.all_jobs as
select
  j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.payload, null::jsonb as result, j.error, j.attempt,
  coalesce(
    j.max_attempts,
    (select k.max_attempts from queue_pg.kinds k where k.kind = j.kind),
    (select s.max_attempts from queue_pg.settings s)) as max_attempts,
  j.lease_token, j.lease_expires_at, j.worker_id,
  coalesce(
    j.timeout,
    (select k.timeout from queue_pg.kinds k where k.kind = j.kind),
    (select s.timeout from queue_pg.settings s)) as timeout,
  j.expires_at, j.unique_key, j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.metadata, j.traceparent,
  j.created_at, j.claimed_at as started_at, null::timestamptz as finished_at
from queue_pg.jobs j
union all
select
  f.id, f.org, f.queue, f.kind, f.state, f.priority, f.run_at, f.payload, f.result, f.error, f.attempt,
  f.max_attempts, f.lease_token, null, f.worker_id, f.timeout, f.expires_at, f.unique_key, f.limit_key, f.cost,
  f.parent_id, f.batch_id, f.tags, f.metadata, f.traceparent, f.created_at, f.started_at, f.finished_at
from queue_pg.finished_jobs f
where f.retain_until > queue_pg.now();

comment on view queue_pg.all_jobs is 'Every job that can be read, live or finished; queue_pg.job(id) is one of them.';
