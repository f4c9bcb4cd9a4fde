/* queue_pg:list_jobs */
-- Newest first by id; `before` is the last id of the page before.
select
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at
  ) r)::text as job,
  null::text as payload, null::text as result, j.error::text as error, j.metadata::text as metadata
from queue_pg.all_jobs j
where (%(org)s::text is null or j.org = %(org)s)
  and (%(state)s::text is null or j.state = %(state)s::queue_pg.job_state)
  and (%(queue)s::text is null or j.queue = %(queue)s)
  and (%(kind)s::text is null or j.kind = %(kind)s)
  and (%(tag)s::text is null or %(tag)s = any (j.tags))
  and (%(batch_id)s::uuid is null or j.batch_id = %(batch_id)s)
  and (%(parent_id)s::uuid is null or j.parent_id = %(parent_id)s)
  and (%(unique_key)s::text is null or j.unique_key = %(unique_key)s)
  and (%(before)s::uuid is null or j.id < %(before)s)
order by j.id desc
limit %(limit)s::integer
