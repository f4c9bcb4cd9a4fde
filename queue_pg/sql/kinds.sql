/* queue_pg:kinds */
select k.kind, k.schema::text as schema, k.max_attempts, k.timeout, k.retry_base, k.retry_cap, k.description, k.registered_at
from queue_pg.kinds k
order by k.kind
