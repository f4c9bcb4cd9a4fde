/* queue_pg:claim */
select c.*
from (select set_config('synchronous_commit', 'on', true) as value offset 0) as pin,
  queue_pg.claim(
    %(worker_id)s::text, %(queues)s::text[], %(kinds)s::text[], %(max_jobs)s::integer,
    make_interval(secs => %(lease_seconds)s::float8), %(org)s::text,
    %(arm)s::boolean) as c
