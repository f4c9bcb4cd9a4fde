/* queue_pg:drain_queue */
select queue_pg.drain_queue(%(queue)s::text, %(org)s::text)
