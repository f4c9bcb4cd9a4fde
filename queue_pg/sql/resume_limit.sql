/* queue_pg:resume_limit */
select queue_pg.resume_limit(%(scope)s::text, %(name)s::text, %(org)s::text) as found
