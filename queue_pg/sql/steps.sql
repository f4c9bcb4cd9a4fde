/* queue_pg:steps */
select
  s.name, s.type, s.result::text as result, s.timed_out, s.until, s.attempt, s.begun_at, s.finished_at
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
join queue_pg.job_steps s on s.job_id = own.id
order by s.begun_at, s.name
