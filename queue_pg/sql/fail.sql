/* queue_pg:fail */
select queue_pg.fail(
  %(id)s::uuid, %(lease_token)s::bigint, %(error)s::text::jsonb, %(retry)s::boolean, %(delay)s::interval) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
