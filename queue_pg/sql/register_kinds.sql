/* queue_pg:register_kinds */
select queue_pg.register_kinds(%(kinds)s::text::jsonb)
