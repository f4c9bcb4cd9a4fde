/* queue_pg:claim_for_worker */
select
  c.id::text, c.org, c.queue, c.kind, c.payload, nullif(c.metadata, '{}'), c.attempt, c.max_attempts, c.lease_token,
  c.lease_seconds, c.timeout_seconds, nullif(c.tags, '{}'), c.traceparent
from (select set_config('synchronous_commit', 'on', true) as value offset 0) as pin,
  queue_pg.claim(
    %(worker_id)s::text, %(queues)s::text[], %(kinds)s::text[], %(max_jobs)s::integer,
    make_interval(secs => %(lease_seconds)s::float8), null, %(arm)s::boolean) as c
