/* queue_pg:pause_queue */
select queue_pg.pause_queue(%(queue)s::text, %(until)s::timestamptz, %(org)s::text)
