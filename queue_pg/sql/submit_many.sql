/* queue_pg:submit_many */
select s.id::text as id, s.created
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable,
  queue_pg.submit_many(%(jobs)s::text::jsonb) s
order by s."position"
