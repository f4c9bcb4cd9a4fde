/* queue_pg:pause_schedule */
select queue_pg.pause_schedule(%(name)s::text, %(org)s::text)
