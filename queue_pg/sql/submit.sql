/* queue_pg:submit */
-- A job as JSON text and its documents as text of their own: any driver reads it whatever its settings for dates, and
-- a document that Python cannot hold spoils only itself. `pin` is for a transaction of our own, which is over with
-- this statement and must be on disk before it is acknowledged; a caller's transaction decides that for itself.
select
  s.id::text as id, s.created,
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  j.payload::text as payload, j.result::text as result, j.error::text as error, j.metadata::text as metadata
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable,
  queue_pg.submit_many(%(jobs)s::text::jsonb) s
cross join lateral queue_pg.job(s.id) j
order by s."position"
