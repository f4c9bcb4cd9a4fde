/* queue_pg:doctor_limits */
-- Limits whose count is not that of the attempts that count against them: one look at both, which change together.
with counted as (
  select j.org::text as org, s.scope, s.name, count(*) as attempts
  from queue_pg.jobs j
  cross join lateral (values ('queue', j.queue::text, 1), ('key', j.limit_key::text, 2)) as s (scope, name, bit)
  where j.state = 'running' and j.counted & s.bit <> 0
  group by j.org, s.scope, s.name
)
select l.org, l.scope, l.name, l.running as was, coalesce(c.attempts, 0)::integer as running
from queue_pg.limits l left join counted c using (org, scope, name)
where l.running <> coalesce(c.attempts, 0)
order by l.org, l.scope, l.name limit 1000
