-- breaking: no
-- Who maintains, for a fleet that asks little: one process leads, the others look in turn whether it still does.

create table queue_pg.maintenance (
  one_row boolean primary key default true constraint maintenance_one_row check (one_row),
  leader text,
  leader_until timestamptz not null default '-infinity',
  next_look_at timestamptz not null default '-infinity'
) with (
  -- Rewritten each second: all its versions stay on one page, without an entry in the index.
  fillfactor = 10
);
insert into queue_pg.maintenance default values;

comment on table queue_pg.maintenance is
  'Which process maintains, one row. It only saves work: every step is guarded by the rows'' own state.';
comment on column queue_pg.maintenance.leader is 'The process that maintains, or did last.';
comment on column queue_pg.maintenance.leader_until is 'Whoever looks after this moment takes the lead.';
comment on column queue_pg.maintenance.next_look_at is 'The last appointment given to a process that does not lead.';

-- Made anew by functions/*.sql, with more parameters or other answers.
drop function if exists queue_pg.reap(integer);
drop function if exists queue_pg.promote(integer);
drop function if exists queue_pg.expire(integer);
drop function if exists queue_pg.maintain(integer);
drop function if exists queue_pg.maintain_history();
drop function if exists queue_pg.sweep();
drop function if exists queue_pg.worker_heartbeat(text, integer, bigint, bigint, boolean);
