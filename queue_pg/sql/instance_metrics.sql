/* queue_pg:instance_metrics */
select
  m.workers, m.stopping_workers, m.slots, m.busy_slots, m.schedules, m.paused_schedules, m.failing_schedules,
  m.schedule_lag_seconds, m.due_lag_seconds, m.horizon_age_seconds, m.horizon_age_transactions, m.horizon_kind,
  m.dead_jobs, m.dead_counters, m.live_jobs, m.jobs_bytes, m.maintenance_leads
from queue_pg.instance_metrics() m
