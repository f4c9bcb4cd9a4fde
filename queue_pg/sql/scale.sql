/* queue_pg:scale */
select s.desired_workers, s.state, s.queued, s.running, s.startable, s.slots_per_worker, s.seconds_per_job
from queue_pg.scale(
  %(queue)s::text, %(slots)s::integer, %(jobs_per_worker)s::float8, %(target_wait)s::interval, %(job_seconds)s::float8,
  %(min_workers)s::integer, %(max_workers)s::integer, %(org)s::text) s
