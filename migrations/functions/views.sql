-- For people with psql, as in: select * from queue_pg.overview;

create or replace view queue_pg.overview as
select
  s.org, s.queue,
  case when s.paused then 'paused' when s.draining then 'draining' else 'open' end as status,
  s.scheduled, s.waiting, s.queued, s.running, s.completed, s.failed, s.cancelled,
  make_interval(secs => round(s.oldest_queued_seconds::numeric)::double precision) as oldest_queued,
  (select count(*) from queue_pg.workers w
    where s.queue = any (w.queues) and w.heartbeat_at > queue_pg.now() - interval '60 seconds') as live_workers
from queue_pg.queue_stats() s;

comment on view queue_pg.overview is 'Every queue with its jobs by state, the age of the oldest queued one and its live workers.';

create or replace view queue_pg.running as
select
  j.id, j.queue, j.kind, j.attempt, j.worker_id,
  date_trunc('second', queue_pg.now() - j.claimed_at) as running_for,
  date_trunc('second', j.lease_expires_at - queue_pg.now()) as lease_left,
  j.tags, j.org
from queue_pg.jobs j
where j.state = 'running'
order by j.claimed_at;

comment on view queue_pg.running is 'What runs now, the longest first.';

create or replace view queue_pg.failures as
select
  f.id, f.queue, f.kind, f.attempt, f.error ->> 'code' as code, left(f.error ->> 'message', 200) as message,
  f.finished_at, f.worker_id, f.org
from queue_pg.finished_jobs f
where f.state = 'failed' and f.retain_until > queue_pg.now()
order by f.id desc;

comment on view queue_pg.failures is 'Jobs that failed for good, the newest first. select queue_pg.retry(id) runs one again.';
