/* queue_pg:save_step */
select queue_pg.save_step(%(id)s::uuid, %(lease_token)s::bigint, %(name)s::text, %(result)s::text::jsonb)
from (select set_config('synchronous_commit', 'on', true)) as durable
