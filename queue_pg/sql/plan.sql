/* queue_pg:plan */
select queue_pg.plan(
  %(id)s::uuid, %(lease_token)s::bigint, %(subtasks)s::text[], %(queue)s::text, %(kind)s::text,
  %(max_attempts)s::integer, make_interval(secs => %(timeout_seconds)s::double precision)) as state
from (select set_config('synchronous_commit', 'on', true)) as durable
