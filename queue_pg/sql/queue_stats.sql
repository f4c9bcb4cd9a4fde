/* queue_pg:queue_stats */
-- A pause without end is stored as infinity, which Python cannot hold.
select
  q.org, q.queue, q.paused, case when isfinite(q.paused_until) then q.paused_until end as paused_until, q.scheduled,
  q.waiting, q.queued, q.running, q.completed, q.failed, q.cancelled, q.oldest_queued_seconds, q.draining
from queue_pg.queue_stats(%(org)s::text) q
order by q.org, q.queue
