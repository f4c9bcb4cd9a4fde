/* queue_pg:reprioritize */
select
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  j.payload::text as payload, j.result::text as result, j.error::text as error, j.metadata::text as metadata
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
cross join lateral queue_pg.reprioritize(own.id, %(priority)s::integer) j
