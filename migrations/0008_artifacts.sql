-- breaking: no
-- Artifacts: files that belong to a job, stored once by what they hold; and lz4 for what is large, where the server has it.

-- A file is cut into chunks of 1 MiB. Chunks are addressed by their SHA-256, which Postgres computes itself, so nothing
-- is ever stored twice, not even while it arrives, and a claim about a hash can never put other data in its place.
create table queue_pg.chunks (
  sha256 bytea primary key constraint chunks_sha256_length check (octet_length(sha256) = 32),
  data bytea not null constraint chunks_data_size check (octet_length(data) between 1 and 1048576)
);

comment on table queue_pg.chunks is 'Pieces of artifacts of at most 1 MiB, each stored once.';
comment on column queue_pg.chunks.sha256 is 'Of data, computed here; readers compare it again.';

create table queue_pg.blob_chunks (
  blob_id uuid not null,
  number integer not null constraint blob_chunks_number_range check (number >= 0),
  sha256 bytea not null references queue_pg.chunks (sha256),
  primary key (blob_id, number)
);
create index blob_chunks_sha256 on queue_pg.blob_chunks (sha256);

comment on table queue_pg.blob_chunks is 'Which chunks make up a blob, an upload, or what is being removed.';
comment on column queue_pg.blob_chunks.number is 'From 0; all but the last are 1 MiB long.';

create table queue_pg.blobs (
  id uuid primary key,
  sha256 bytea not null unique constraint blobs_sha256_length check (octet_length(sha256) = 32),
  size bigint not null constraint blobs_size_range check (size >= 0),
  chunks_sha256 bytea not null constraint blobs_chunks_sha256_length check (octet_length(chunks_sha256) = 32),
  created_at timestamptz not null default queue_pg.now(),
  unused_since timestamptz
);
create index blobs_unused on queue_pg.blobs (unused_since) where unused_since is not null;

comment on table queue_pg.blobs is 'Whole contents, each stored once; artifacts of any number of jobs refer to one.';
comment on column queue_pg.blobs.id is 'The one in blob_chunks.';
comment on column queue_pg.blobs.sha256 is 'Of the whole content, computed by who uploaded it; readers of the whole compare it.';
comment on column queue_pg.blobs.chunks_sha256 is
  'Of the hashes of its chunks, one after the other: what a reader of any part compares the list of them with.';
comment on column queue_pg.blobs.unused_since is
  'Set whenever an artifact stops referring to it; after an hour maintenance removes it unless another one still does.';

-- Contents arrive in many short transactions: one for the whole would pin dead rows for as long as a client takes.
create table queue_pg.uploads (
  id uuid primary key default queue_pg.uuid7(),
  job_id uuid not null,
  name text not null,
  content_type text not null,
  lease_token bigint,
  size bigint not null default 0,
  chunks integer not null default 0,
  -- Not indexed, so that its change with each chunk stays on the page; there are only as many rows as are under way.
  touched_at timestamptz not null default queue_pg.now()
) with (fillfactor = 50);
create index uploads_job on queue_pg.uploads (job_id);

comment on table queue_pg.uploads is 'Artifacts on their way in. One that gets no chunk for an hour is removed.';
comment on column queue_pg.uploads.lease_token is 'The right of a running job''s worker; null: an input for a job that does not run.';

create table queue_pg.discarded_blobs (
  blob_id uuid primary key
);

comment on table queue_pg.discarded_blobs is 'Contents that maintenance removes, some chunks at a time.';

create table queue_pg.artifacts (
  job_id uuid not null,
  name text collate "C" not null,
  size bigint not null,
  sha256 bytea not null references queue_pg.blobs (sha256),
  content_type text not null,
  attempt integer not null,
  created_at timestamptz not null default queue_pg.now(),
  primary key (job_id, name)
);
create index artifacts_sha256 on queue_pg.artifacts (sha256);

comment on table queue_pg.artifacts is
  'Files of jobs by name. Read them with queue_pg.list_artifacts() and read_artifact(), which know whether the job still is.';
comment on column queue_pg.artifacts.name is 'A relative path such as logs/out.txt that is safe on every system.';
comment on column queue_pg.artifacts.attempt is 'The attempt that left it; 0: attached before the job ran.';

create table queue_pg.artifact_totals (
  job_id uuid primary key,
  artifacts integer not null,
  bytes bigint not null,
  created_at timestamptz not null default queue_pg.now(),
  look_at timestamptz not null
);
create index artifact_totals_look on queue_pg.artifact_totals (look_at);

comment on table queue_pg.artifact_totals is 'How many artifacts a job has; one row for each job that has any.';
comment on column queue_pg.artifact_totals.look_at is
  'When maintenance looks whether the job still is. So neither the end of a job nor that of its retention has to care.';

alter table queue_pg.settings
  add column max_artifact_bytes bigint not null default 4294967296
    constraint settings_max_artifact_bytes_range check (max_artifact_bytes between 0 and 1099511627776),
  add column max_artifacts integer not null default 1000
    constraint settings_max_artifacts_range check (max_artifacts between 0 and 1000000),
  add column max_job_artifact_bytes bigint not null default 17179869184
    constraint settings_max_job_artifact_bytes_range check (max_job_artifact_bytes between 0 and 1125899906842624);

comment on column queue_pg.settings.max_artifact_bytes is 'Largest artifact.';
comment on column queue_pg.settings.max_artifacts is 'Most artifacts of one job.';
comment on column queue_pg.settings.max_job_artifact_bytes is 'Most that the artifacts of one job may hold together, those under way included.';

-- Made anew by functions/control.sql, with more parameters.
drop function if exists queue_pg.configure(
  interval, integer, interval, interval, interval, interval, integer, interval, boolean);
drop function if exists queue_pg.configure(
  interval, integer, interval, interval, interval, interval, integer, interval, boolean, integer);

-- lz4 packs almost as well as pglz at a fraction of its CPU. For new rows only: nothing is rewritten. The partitions that
-- are there have settings of their own; functions/history.sql makes new ones like their parent.
do $do$
declare
  v_table regclass;
begin
  if not exists (
    select from pg_settings s where s.name = 'default_toast_compression' and 'lz4' = any (s.enumvals)) then
    return;
  end if;
  alter table queue_pg.chunks alter column data set compression lz4;
  alter table queue_pg.jobs alter column payload set compression lz4;
  for v_table in
    select 'queue_pg.finished_jobs'::regclass
    union all select i.inhrelid::regclass from pg_inherits i where i.inhparent = 'queue_pg.finished_jobs'::regclass
  loop
    execute format('alter table %s alter column payload set compression lz4, alter column result set compression lz4',
      v_table);
  end loop;
end
$do$;
