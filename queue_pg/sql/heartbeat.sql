/* queue_pg:heartbeat */
select *
from queue_pg.heartbeat(
  %(ids)s::uuid[], %(lease_tokens)s::bigint[], make_interval(secs => %(lease_seconds)s::float8))
