/* queue_pg:task_description */
select t.payload ->> 'description' as description
from queue_pg.dependencies d
cross join lateral queue_pg.job(d.child_id) t
where d.parent_id = %(id)s::uuid and d.subtask is not null
