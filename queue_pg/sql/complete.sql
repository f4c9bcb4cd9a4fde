/* queue_pg:complete */
select queue_pg.complete(%(id)s::uuid, %(lease_token)s::bigint, %(result)s::text::jsonb) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
