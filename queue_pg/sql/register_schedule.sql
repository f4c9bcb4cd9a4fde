/* queue_pg:register_schedule */
select queue_pg.register_schedule(
  %(kind)s::text, %(cron)s::text, %(every_seconds)s::float8 * interval '1 second', %(time_zone)s::text,
  %(missed)s::text, %(queue)s::text, %(priority)s::integer,
  limit_key => %(limit_key)s::text, cost => %(cost)s::integer) as registered
