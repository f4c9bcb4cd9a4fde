/* queue_pg:forget_worker */
select queue_pg.forget_worker(%(id)s::text)
