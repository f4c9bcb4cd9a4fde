/* queue_pg:workers */
select
  w.id, w.host, w.pid, w.version, w.queues, w.kinds, w.capacity, w.active, w.processed, w.failed, w.stopping,
  w.started_at, w.heartbeat_at, w.heartbeat_at > queue_pg.now() - interval '60 s' as live
from queue_pg.workers w
order by w.host, w.id
