/* queue_pg:disarm */
select queue_pg.disarm(%(queues)s::text[])
