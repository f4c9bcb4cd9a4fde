/* queue_pg:limit_metrics */
select m.org, m.scope, m.name, m.running, m.max_running, m.full_limits from queue_pg.limit_metrics(%(org)s::text) m
