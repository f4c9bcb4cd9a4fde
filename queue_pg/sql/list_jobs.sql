/* queue_pg:list_jobs */
-- Newest first by id; `before` is the last id of the page before. The ids are picked first, from the two tables apart,
-- so that each can walk its index on id backwards and stop; the jobs are read for the page only.
with live as (
  select p.id
  from queue_pg.jobs p
  where (%(org)s::text is null or p.org = %(org)s)
    and (%(state)s::text is null or p.state = %(state)s::queue_pg.job_state)
    and (%(queue)s::text is null or p.queue = %(queue)s)
    and (%(kind)s::text is null or p.kind = %(kind)s)
    and (%(tag)s::text is null or %(tag)s = any (p.tags))
    and (%(batch_id)s::uuid is null or p.batch_id = %(batch_id)s)
    and (%(parent_id)s::uuid is null or p.parent_id = %(parent_id)s)
    and (%(unique_key)s::text is null or p.unique_key = %(unique_key)s)
    and (%(rerun_of)s::uuid is null or p.rerun_of = %(rerun_of)s)
    and (%(error_code)s::text is null or p.error ->> 'code' = %(error_code)s)
    and (%(created_after)s::timestamptz is null or p.created_at >= %(created_after)s)
    and (%(created_before)s::timestamptz is null or p.created_at < %(created_before)s)
    and (%(before)s::uuid is null or p.id < %(before)s)
  order by p.id desc
  limit %(limit)s::integer
),
finished as (
  select p.id
  from queue_pg.finished_jobs p
  where p.retain_until > queue_pg.now()
    and (%(org)s::text is null or p.org = %(org)s)
    and (%(state)s::text is null or p.state = %(state)s::queue_pg.job_state)
    and (%(queue)s::text is null or p.queue = %(queue)s)
    and (%(kind)s::text is null or p.kind = %(kind)s)
    and (%(tag)s::text is null or %(tag)s = any (p.tags))
    and (%(batch_id)s::uuid is null or p.batch_id = %(batch_id)s)
    and (%(parent_id)s::uuid is null or p.parent_id = %(parent_id)s)
    and (%(unique_key)s::text is null or p.unique_key = %(unique_key)s)
    and (%(rerun_of)s::uuid is null or p.rerun_of = %(rerun_of)s)
    and (%(error_code)s::text is null or p.error ->> 'code' = %(error_code)s)
    and (%(created_after)s::timestamptz is null or p.created_at >= %(created_after)s)
    and (%(created_before)s::timestamptz is null or p.created_at < %(created_before)s)
    and (%(before)s::uuid is null or p.id < %(before)s)
  order by p.id desc
  limit %(limit)s::integer
),
page as materialized (
  select picked.id
  from (select l.id from live l union all select f.id from finished f) as picked
  order by picked.id desc
  limit %(limit)s::integer
)
select
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  case when %(with_payload)s::boolean then j.payload::text end as payload,
  case when %(with_payload)s::boolean then j.result::text end as result,
  j.error::text as error, j.metadata::text as metadata
from page
cross join lateral queue_pg.job(page.id) j
order by page.id desc
