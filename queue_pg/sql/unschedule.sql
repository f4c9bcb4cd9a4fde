/* queue_pg:unschedule */
select queue_pg.unschedule(%(name)s::text, %(org)s::text)
