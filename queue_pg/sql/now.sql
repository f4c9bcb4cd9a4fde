/* queue_pg:now */
select queue_pg.now() as now
