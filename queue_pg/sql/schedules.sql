/* queue_pg:schedules */
-- Documents as text, so that one that Python cannot hold spoils only itself.
select
  s.id, s.org::text, s.name, s.cron, extract(epoch from s.every)::float8 as every_seconds, s.at, s.time_zone, s.starts_at,
  s.ends_at, extract(epoch from s.jitter)::float8 as jitter_seconds, s.missed, s.paused, s.kind::text, s.queue::text,
  s.payload::text as payload, s.priority, s.max_attempts::integer, extract(epoch from s.timeout)::float8 as timeout_seconds,
  s.tags::text[], s.metadata::text as metadata, s.origin, queue_pg.next_fires(s) as next_fires, s.last_fire_at,
  s.last_job_id, s.error::text as error, s.created_at, s.limit_key::text, s.cost::integer
from queue_pg.schedules s
where (%(org)s::text is null or s.org = %(org)s::text)
  and (%(name)s::text is null or s.name = %(name)s::text)
  and (%(after)s::text is null or s.name > %(after)s::text)
order by s.name
-- A name may be several tenants'; the next page begins after it.
fetch first (%(limit)s::integer) rows with ties
