/* queue_pg:delete */
select own.id, queue_pg.delete(own.id, %(cancel)s::boolean)::text as deleted
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
