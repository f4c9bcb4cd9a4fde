/* queue_pg:wait */
select queue_pg.wait(%(id)s::uuid, %(lease_token)s::bigint) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
