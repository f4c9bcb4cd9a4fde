/* queue_pg:watch */
select w.id, w.state::text as state from queue_pg.watch(%(ids)s::uuid[]) w
