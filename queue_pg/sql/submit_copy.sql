/* queue_pg:submit_copy */
copy queue_pg.jobs (
  id, payload, run_at, created_at, priority, state, org, queue, kind, max_attempts, timeout, expires_at, tags, metadata,
  traceparent, batch_id, limit_key, cost)
from stdin (format binary)
