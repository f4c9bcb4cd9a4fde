/* queue_pg:snooze */
select queue_pg.snooze(%(id)s::uuid, %(lease_token)s::bigint, %(delay)s::interval) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
