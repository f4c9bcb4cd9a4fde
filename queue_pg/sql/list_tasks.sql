/* queue_pg:list_tasks */
-- Newest first by id, as sql/list_jobs.sql; by state, live jobs alone or finished ones alone are walked through, and of these
-- the unsuccessful ones by an index of their own.
with live as (
  select n.id
  from queue_pg.newest_tasks(
    true, %(state)s::text, %(org)s::text, %(before)s::uuid, %(limit)s::integer + %(offset)s::integer) as n (id)
  where %(state)s::text is null or %(state)s::text in ('scheduled', 'waiting', 'queued', 'running')
),
finished as (
  select n.id
  from queue_pg.newest_tasks(
    false, %(state)s::text, %(org)s::text, %(before)s::uuid, %(limit)s::integer + %(offset)s::integer) as n (id)
  where %(state)s::text is null or %(state)s::text = 'completed'
),
unsuccessful as (
  select p.id
  from queue_pg.finished_jobs p
  where %(state)s::text in ('failed', 'cancelled')
    and p.state in ('failed', 'cancelled') and p.state::text = %(state)s
    and p.retain_until > queue_pg.now()
    and (%(org)s::text is null or p.org = %(org)s)
    and (%(before)s::uuid is null or p.id < %(before)s)
  order by p.id desc
  limit %(limit)s::integer + %(offset)s::integer
),
page as materialized (
  select picked.id
  from (select l.id from live l union all select f.id from finished f union all select u.id from unsuccessful u) as picked
  order by picked.id desc
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
