/* queue_pg:look_schedules_mark */
-- A text that changes whenever a schedule is made, changed or removed, or fires.
select concat_ws(' ', count(*), md5(string_agg(md5(
  row(s.id, s.cron, s.every, s.at, s.time_zone, s.paused, s.kind, s.queue, s.next_fire_at, s.last_job_id, s.error)::text), ''
  order by s.id))) as mark
from queue_pg.schedules s
where s.org = %(org)s::text
