/* queue_pg:limits */
select
  n.org, n.scope, n.name, n.status, n.running, n.max_running, l.rate, l.per, l.burst, n.units_left,
  n.status = 'paused' as paused, case when n.status = 'paused' and isfinite(l.paused_until) then l.paused_until end as paused_until,
  n.opens_at, n.template, n.weight, extract(epoch from n.ageing)::float8 as ageing_seconds
from queue_pg.limits_now n join queue_pg.limits l using (org, scope, name)
where (%(org)s::text is null or n.org = %(org)s) and (%(scope)s::text is null or n.scope = %(scope)s)
  and (%(name)s::text is null or n.name = %(name)s)
  and (%(after_scope)s::text is null or (n.scope, n.name, n.org) > (%(after_scope)s::text, %(after_name)s::text, %(after_org)s::text))
order by n.scope, n.name, n.org limit %(limit)s
