/* queue_pg:testing_clock_advance */
update queue_pg.testing_clock set moved = moved + %(by)s::interval
returning queue_pg.now() as now
