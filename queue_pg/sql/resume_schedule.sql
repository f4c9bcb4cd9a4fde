/* queue_pg:resume_schedule */
select queue_pg.resume_schedule(%(name)s::text, %(org)s::text)
