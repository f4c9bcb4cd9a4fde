explain (analyze, buffers, wal, costs off, timing off, summary off)
update queue_pg.jobs j
set state = 'running', attempt = j.attempt + 1, lease_token = j.lease_token + 1, worker_id = 'bench',
  claimed_at = now(), lease_expires_at = now() + interval '30 seconds', max_attempts = 4, timeout = '300 seconds'
from unnest(array(select id from picked)) as p (id)
where j.id = p.id
returning j.id
