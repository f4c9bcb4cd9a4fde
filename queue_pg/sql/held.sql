/* queue_pg:held */
select h.id from queue_pg.held(%(ids)s::uuid[], %(lease_tokens)s::bigint[]) h
