/* queue_pg:look_schedules */
-- Schedules by name as people look at them: no payload in a list, of one that is named its first characters and its size.
select
  s.name, s.cron, extract(epoch from s.every)::float8 as every_seconds, s.at, s.time_zone, s.starts_at, s.ends_at,
  extract(epoch from s.jitter)::float8 as jitter_seconds, s.missed, s.paused, s.kind::text as kind, s.queue::text as queue,
  s.priority, s.max_attempts::integer as max_attempts, extract(epoch from s.timeout)::float8 as timeout_seconds,
  s.tags::text[] as tags, s.origin, queue_pg.next_fires(s, %(fires)s::integer) as next_fires, s.last_fire_at, s.last_job_id,
  left(s.error ->> 'code', 200) as error_code, left(s.error ->> 'message', 2000) as error_message, s.created_at,
  left(d.payload, %(characters)s::integer) as payload, octet_length(d.payload) as payload_bytes, queue_pg.now() as now
from queue_pg.schedules s
cross join lateral (select case when %(name)s::text is not null then s.payload::text end as payload offset 0) d
where s.org = %(org)s::text
  and (%(name)s::text is null or s.name = %(name)s::text)
  and (%(after)s::text is null or s.name > %(after)s::text)
order by s.name
limit %(limit)s::integer
