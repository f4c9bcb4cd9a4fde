/* queue_pg:read_events */
select e."position", e.org, e.state, e.followed, e.last_seq, e.seq, e.at, e.type, e.data
from queue_pg.read_events(
  %(ids)s::uuid[], %(after)s::integer[], %(max_events)s::integer, %(max_bytes)s::bigint) e
order by e."position", e.seq
