/* queue_pg:horizon */
select
  h.kind, h.pid, h.name, h.username, h.database, h.state, h.visible, h.age_seconds, h.age_transactions, h.query,
  h.dead_rows, h.jobs_bytes
from queue_pg.horizon() h
