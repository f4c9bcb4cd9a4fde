/* queue_pg:signal */
select queue_pg.signal(own.id, %(name)s::text, %(payload)s::text::jsonb) as created
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
