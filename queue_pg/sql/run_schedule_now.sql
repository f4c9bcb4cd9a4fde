/* queue_pg:run_schedule_now */
select queue_pg.run_schedule_now(%(name)s::text, %(org)s::text) as id
