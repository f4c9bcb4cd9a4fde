/* queue_pg:close_batch */
select c.id
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select b.id from queue_pg.batches b
    where b.id = %(id)s::uuid and (%(org)s::text is null or b.org = %(org)s)) as own
cross join lateral queue_pg.close_batch(own.id) c
