/* queue_pg:resign_maintenance */
select queue_pg.resign_maintenance(%(leader)s::text)
