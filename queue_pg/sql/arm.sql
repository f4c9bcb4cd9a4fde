/* queue_pg:arm */
select queue_pg.arm(%(queues)s::text[])
