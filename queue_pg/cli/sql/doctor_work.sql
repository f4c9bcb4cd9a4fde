/* queue_pg:doctor_work */
-- Whether the work is looked after. Every count is bounded, so that a doctor does no harm to a sick database.
select
  (
    select count(*) from queue_pg.workers w
    where w.heartbeat_at > queue_pg.now() - interval '60 seconds'
      and (%(host)s::text is null or w.host = %(host)s)
  ) as live_workers,
  (
    select count(*) from (
      select from queue_pg.jobs j
      where j.state = 'running' and j.lease_expires_at < queue_pg.now() - interval '30 seconds'
      limit 1000
    ) as late
  ) as expired_leases,
  (
    select count(*) from (
      select from queue_pg.jobs j
      where j.state = 'scheduled' and j.run_at < queue_pg.now() - interval '30 seconds'
      limit 1000
    ) as late
  ) as overdue_jobs,
  (select count(*) from (select from queue_pg.finished_jobs_default limit 1000) as kept) as default_partition_rows
