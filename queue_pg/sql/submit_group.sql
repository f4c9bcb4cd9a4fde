/* queue_pg:submit_group */
-- For jobs without unique keys; `kinds` are theirs in the same order. What a job does not say of its limits is answered
-- as it applies now. `pin` as in submit.sql.
select
  s.id::text as id, coalesce(k.max_attempts, d.max_attempts) as max_attempts,
  extract(epoch from coalesce(k.timeout, d.timeout))::double precision as timeout_seconds
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable
cross join queue_pg.submit_many(%(jobs)s::text::jsonb) s
cross join queue_pg.settings d
left join queue_pg.kinds k on k.kind = (%(kinds)s::text[])[s."position"]
order by s."position"
