/* queue_pg:resume_queue */
select queue_pg.resume_queue(%(queue)s::text, %(org)s::text)
