with done as (
  delete from raw_jobs j
  using unnest(%s::uuid[], %s::jsonb[]) as f (id, result)
  where j.id = f.id
  returning j.*, f.result
)
insert into raw_history (
  id, run_at, created_at, started_at, finished_at, lease_token, attempt, max_attempts, state, priority, queue, kind,
  worker, payload, result)
select
  id, run_at, created_at, lease_expires_at - interval '30 seconds', now(), lease_token, attempt, max_attempts,
  'completed', priority, queue, kind, worker, payload, result
from done
