explain (analyze, buffers, wal, costs off, timing off, summary off)
delete from queue_pg.jobs j using unnest(array(select id from picked)) as p (id)
where j.id = p.id and j.lease_expires_at is not null and j.lease_token = 1
returning j.id
