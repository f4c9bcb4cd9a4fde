/* queue_pg:queue_metrics */
select
  m.org, m.queue, m.paused, m.scheduled, m.waiting, m.queued, m.running, m.estimated, m.oldest_queued_seconds,
  m.completed, m.failed, m.cancelled, m.retried, m.lease_losses, m.failed_webhooks, m.workers, m.unlisted
from queue_pg.queue_metrics(%(org)s::text) m
