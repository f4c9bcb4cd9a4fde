/* queue_pg:remove_limit */
select queue_pg.remove_limit(%(scope)s::text, %(name)s::text, %(org)s::text) as found
