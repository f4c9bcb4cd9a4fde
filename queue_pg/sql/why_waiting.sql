/* queue_pg:why_waiting */
select
  r.reason, r.detail, case when isfinite(r.until) then r.until end as until, r.held_by
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
cross join lateral queue_pg.why_waiting(own.id) r
