insert into queue_pg.jobs (kind, payload) values ('noop', jsonb_build_object('n', %s::bigint))
