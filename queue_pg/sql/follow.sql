/* queue_pg:follow */
select queue_pg.follow(%(ids)s::uuid[])
