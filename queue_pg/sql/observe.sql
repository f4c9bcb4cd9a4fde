/* queue_pg:observe */
select queue_pg.observe(%(id)s::text) as observed
