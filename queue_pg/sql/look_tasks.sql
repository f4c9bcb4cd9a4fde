/* queue_pg:look_tasks */
-- Tasks newest first as people look at them: as sql/list_tasks.sql, with what each is about in its first characters instead
-- of its payload.
with live as (
  select n.id
  from queue_pg.newest_tasks(true, %(state)s::text, %(org)s::text, %(before)s::uuid, %(limit)s::integer) as n (id)
  where %(state)s::text is null or %(state)s::text in ('scheduled', 'waiting', 'queued', 'running')
),
finished as (
  select n.id
  from queue_pg.newest_tasks(false, %(state)s::text, %(org)s::text, %(before)s::uuid, %(limit)s::integer) as n (id)
  where %(state)s::text is null or %(state)s::text = 'completed'
),
unsuccessful as (
  select p.id
  from queue_pg.finished_jobs p
  where %(state)s::text in ('failed', 'cancelled')
    and p.state in ('failed', 'cancelled') and p.state::text = %(state)s
    and p.retain_until > queue_pg.now()
    and p.org = %(org)s
    and (%(before)s::uuid is null or p.id < %(before)s)
  order by p.id desc
  limit %(limit)s::integer
),
page as materialized (
  select picked.id
  from (select l.id from live l union all select f.id from finished f union all select u.id from unsuccessful u) as picked
  order by picked.id desc
  limit %(limit)s::integer
)
select
  j.id, j.kind::text as kind, f.status, left(j.metadata #>> '{task,name}', 200) as name,
  -- A large one is not read for a list.
  case when j.kind in ('plan', 'subtask', 'chat') and pg_column_size(j.payload) <= 16384
    then left(coalesce(j.payload ->> 'description', j.payload ->> 'prompt'), 200) end as about,
  cardinality(f.subtasks) as subtasks, f.parent_task_id, j.created_at, j.run_at, j.started_at, j.finished_at,
  left(j.error ->> 'code', 200) as error_code
from page
cross join lateral queue_pg.job(page.id) j
cross join lateral queue_pg.task_facts(j.id, j.state, j.parent_id) f
order by page.id desc
