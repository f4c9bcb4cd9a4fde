/* queue_pg:maintain */
select * from queue_pg.maintain(%(max_jobs)s::integer)
