/* queue_pg:release */
select queue_pg.release(%(id)s::uuid, %(lease_token)s::bigint) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
