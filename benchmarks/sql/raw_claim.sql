with picked as materialized (
  select id from raw_jobs
  where state = 'queued' and queue = 'default' and run_at <= now()
  order by queue, priority desc, run_at, id
  limit %s
  for update skip locked
)
update raw_jobs j
set state = 'running', attempt = j.attempt + 1, lease_token = j.lease_token + 1, worker = 'raw',
  lease_expires_at = now() + interval '30 seconds'
from picked
where j.id = picked.id
returning j.id, j.payload
