insert into raw_jobs (kind, payload) select 'noop', jsonb_build_object('n', n) from generate_series(1, %s) n
