insert into queue_pg.jobs (queue, kind, payload)
select %s, 'noop', jsonb_build_object('n', n) from generate_series(1, %s) n
