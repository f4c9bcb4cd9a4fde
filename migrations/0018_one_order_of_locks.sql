-- breaking: no
-- A cancel locks jobs together with their subtasks, in one order: functions/tasks.sql has cancel_jobs() for it.

drop function if exists queue_pg.cancel_subtasks(uuid[], jsonb);
