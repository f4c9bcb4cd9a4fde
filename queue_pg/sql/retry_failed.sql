/* queue_pg:retry_failed */
select r.retried as jobs, r.last_id
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select b.id from queue_pg.batches b
    where b.id = %(id)s::uuid and (%(org)s::text is null or b.org = %(org)s)) as own
cross join lateral queue_pg.retry_failed(
  own.id, %(max_attempts)s::integer, %(and_cancelled)s::boolean, %(max_jobs)s::integer, %(after)s::uuid) r
