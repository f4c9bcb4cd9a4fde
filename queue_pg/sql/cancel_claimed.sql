/* queue_pg:cancel_claimed */
select queue_pg.cancel_claimed(%(id)s::uuid, %(lease_token)s::bigint, %(reason)s::text) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
