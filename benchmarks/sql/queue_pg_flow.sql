insert into queue_pg.jobs (kind, payload) select 'noop', '{"n": 0}' from generate_series(1, %s)
