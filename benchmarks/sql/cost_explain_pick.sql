explain (analyze, buffers, wal, costs off, timing off, summary off)
select array_agg(p.id) from (
  select j.id from queue_pg.jobs j
  where j.state = 'queued' and j.queue = 'default' and j.org = 'default' and j.kind = any ('{noop}')
    and (j.expires_at is null or j.expires_at > now())
  order by j.queue, j.org, j.priority desc, j.run_at, j.id limit 500 for update skip locked) p
