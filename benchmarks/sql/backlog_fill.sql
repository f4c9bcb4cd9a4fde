insert into queue_pg.jobs (org, queue, kind, priority, run_at, payload)
select
  case %(kind)s when 'org' then 'another' else 'default' end,
  case %(kind)s when 'queue' then 'another' else 'default' end,
  'noop',
  case %(kind)s when 'scheduled' then 10 else 0 end,
  queue_pg.now() + case %(kind)s when 'scheduled' then interval '1 day' else interval '0' end,
  jsonb_build_object('n', n)
from generate_series(1, %(jobs)s) n
