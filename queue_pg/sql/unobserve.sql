/* queue_pg:unobserve */
select queue_pg.unobserve(%(id)s::text)
