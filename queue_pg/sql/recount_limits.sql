/* queue_pg:recount_limits */
select r.org, r.scope, r.name, r.was, r.running from queue_pg.recount_limits() r
