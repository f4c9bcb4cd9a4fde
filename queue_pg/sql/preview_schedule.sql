/* queue_pg:preview_schedule */
select fire_at
from queue_pg.preview_schedule(
  cron => %(cron)s::text, every => %(every_seconds)s::float8 * interval '1 second', at => %(at)s::timestamptz,
  time_zone => %(time_zone)s::text, starts_at => %(starts_at)s::timestamptz, ends_at => %(ends_at)s::timestamptz,
  after => %(after)s::timestamptz, most => %(most)s::integer) fire_at
