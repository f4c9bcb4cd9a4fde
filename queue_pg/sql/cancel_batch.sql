/* queue_pg:cancel_batch */
select c.cancelled as jobs, c.last_id
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select b.id from queue_pg.batches b
    where b.id = %(id)s::uuid and (%(org)s::text is null or b.org = %(org)s)) as own
cross join lateral queue_pg.cancel_batch(own.id, %(reason)s::text, %(max_jobs)s::integer, %(after)s::uuid) c
