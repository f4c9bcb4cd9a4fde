/* queue_pg:put_template */
select queue_pg.put_template(
  %(name)s::text, %(kind)s::text, %(payload)s::text::jsonb, %(variables)s::text::jsonb, %(queue)s::text,
  %(priority)s::integer, %(max_attempts)s::integer, make_interval(secs => %(timeout_seconds)s::double precision),
  %(description)s::text, %(org)s::text, %(limit_key)s::text, %(cost)s::integer, %(cache)s::boolean,
  make_interval(secs => %(cache_for_seconds)s::double precision), %(cache_version)s::text) as version
from (select set_config('synchronous_commit', 'on', true)) as durable
