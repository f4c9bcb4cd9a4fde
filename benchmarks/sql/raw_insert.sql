with made as (
  insert into raw_jobs (kind, payload) values ('noop', jsonb_build_object('n', %s::bigint))
)
select pg_notify('raw_jobs', '')
