/* queue_pg:set_limit */
select queue_pg.set_limit(
  %(scope)s::text, %(name)s::text, %(max_running)s::integer, %(rate)s::integer, %(per)s::text, %(burst)s::integer,
  %(org)s::text, %(weight)s::float8, %(ageing_seconds)s::float8 * interval '1 second')
