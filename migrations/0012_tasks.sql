-- breaking: no
-- Tasks that are planned into subtasks; functions/tasks.sql says how.

-- In the edges and not in jobs, whose rows and statements stay as they were.
alter table queue_pg.dependencies
  add column subtask text constraint dependencies_subtask_length check (length(subtask) between 1 and 20000);

comment on column queue_pg.dependencies.subtask is
  'The parent is a subtask of the child, and is to do this; the child ends by the ends of its subtasks. Null: any other parent.';

insert into queue_pg.kinds (kind, description) values
  ('plan', 'Splits a task into subtasks: a description in, jobs of kind subtask out.'),
  ('subtask', 'One part of a planned task.')
on conflict (kind) do nothing;

-- Made anew by functions/dependencies.sql, with one more parameter.
drop function if exists queue_pg.change_children(uuid[], integer[], jsonb[]);
