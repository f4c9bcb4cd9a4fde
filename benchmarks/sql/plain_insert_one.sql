insert into plain_jobs (kind, payload) values ('noop', jsonb_build_object('n', %s::bigint))
