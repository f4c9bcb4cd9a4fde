/* queue_pg:list_child_tasks */
-- The subtasks of a task and those chained to it, newest first. Found by the edges, so it costs what there are of them.
with parent as (
  select queue_pg.find_task(%(parent)s::text) as id
),
child as materialized (
  select d.parent_id as id from parent p join queue_pg.dependencies d on d.child_id = p.id where d.subtask is not null
  union
  select d.child_id from parent p join queue_pg.dependencies d on d.parent_id = p.id
  where d.subtask is null and d.name = 'parent'
),
page as materialized (
  select c.id
  from child c
  cross join lateral queue_pg.job(c.id) j
  where (%(org)s::text is null or j.org = %(org)s)
    and (%(before)s::uuid is null or c.id < %(before)s)
    and (%(state)s::text is null
      or case when j.state = 'waiting' then queue_pg.waiting_task_status(c.id) else j.state::text end = %(state)s)
  order by c.id desc
  limit %(limit)s::integer offset %(offset)s::integer
)
select
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  -- A large one is not read for a list.
  case when pg_column_size(j.payload) <= 16384 then j.payload::text end as payload, null::text as result,
  j.error::text as error, j.metadata::text as metadata,
  f.status, f.parent_task_id::text as parent_task_id, to_json(f.subtasks)::text as subtasks
from page
cross join lateral queue_pg.job(page.id) j
cross join lateral queue_pg.task_facts(j.id, j.state, j.parent_id) f
order by page.id desc
