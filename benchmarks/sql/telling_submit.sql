insert into queue_pg.jobs (kind, payload)
select %s, %s::jsonb from generate_series(1, %s) returning id::text
