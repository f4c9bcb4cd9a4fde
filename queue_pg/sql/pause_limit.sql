/* queue_pg:pause_limit */
select queue_pg.pause_limit(%(scope)s::text, %(name)s::text, %(until)s::timestamptz, %(org)s::text)
