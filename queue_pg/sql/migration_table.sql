/* queue_pg:migration_table */
create schema if not exists queue_pg;

comment on schema queue_pg is 'queue-pg: a durable queue. Start at \d+ queue_pg.jobs and select * from queue_pg.overview.';

create table if not exists queue_pg.migrations (
  name text primary key,
  checksum text not null,
  breaking boolean not null,
  version text not null,
  applied_at timestamptz not null default clock_timestamp()
);

comment on table queue_pg.migrations is 'What queue-pg migrate has applied; a functions/ row is rewritten when its file changes.';
