/* queue_pg:put_schedule */
select s.id, s.created
from queue_pg.schedule(
  %(name)s::text, %(kind)s::text, %(payload)s::text::jsonb,
  cron => %(cron)s::text, every => %(every_seconds)s::float8 * interval '1 second', at => %(at)s::timestamptz,
  time_zone => %(time_zone)s::text, starts_at => %(starts_at)s::timestamptz, ends_at => %(ends_at)s::timestamptz,
  jitter => %(jitter_seconds)s::float8 * interval '1 second', missed => %(missed)s::text, paused => %(paused)s::boolean,
  queue => %(queue)s::text, priority => %(priority)s::integer, max_attempts => %(max_attempts)s::integer,
  timeout => %(timeout_seconds)s::float8 * interval '1 second', tags => %(tags)s::text[],
  metadata => %(metadata)s::text::jsonb, org => %(org)s::text, create_only => %(create_only)s::boolean,
  limit_key => %(limit_key)s::text, cost => %(cost)s::integer) s
