/* queue_pg:submit_clock */
-- What a COPY has to know before it begins. `pin` as in submit.sql.
select (extract(epoch from queue_pg.now()) * 1000000)::bigint::text as microseconds
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable
