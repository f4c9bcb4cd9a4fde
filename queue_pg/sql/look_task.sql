/* queue_pg:look_task */
-- A task as people look at it: what it is about, and its subtasks with the state of each.
select
  j.id, j.kind::text as kind, f.status, left(j.metadata #>> '{task,name}', 200) as name,
  case when j.kind in ('plan', 'subtask') then left(j.payload ->> 'description', 10000) end as about,
  case when j.kind = 'plan' then left(j.payload ->> 'planner', 20) end as planner, f.parent_task_id,
  (select coalesce(json_agg(json_build_object('id', d.parent_id, 'about', left(d.subtask, 500),
      'state', queue_pg.state_of(d.parent_id)) order by length(d.name), d.name), '[]')
    from queue_pg.dependencies d where d.child_id = j.id and d.subtask is not null)::text as subtasks
from queue_pg.job(%(id)s::uuid) j
cross join lateral queue_pg.task_facts(j.id, j.state, j.parent_id) f
where j.org = %(org)s::text
