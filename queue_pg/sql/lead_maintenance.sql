/* queue_pg:lead_maintenance */
select *
from queue_pg.lead_maintenance(
  %(leader)s::text, %(max_jobs)s::integer, %(arm)s::boolean, %(since)s::timestamptz,
  make_interval(secs => %(within_seconds)s::float8), make_interval(secs => %(age_seconds)s::float8))
