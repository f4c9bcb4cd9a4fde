/* queue_pg:look_steps */
-- The newest steps of a job as people look at them: of each result the first characters and its size. `waits`: the job's
-- last claim has reached it, and it is not over.
select
  s.name, s.type, s.timed_out, s.until, s.attempt, s.begun_at, s.finished_at,
  s.finished_at is null and s.lease_token = own.lease_token and own.finished_at is null as waits,
  left(r.result, %(characters)s::integer) as result, octet_length(r.result) as result_bytes
from (
  select o.id, o.lease_token, o.finished_at from queue_pg.job(%(id)s::uuid) o
  where %(org)s::text is null or o.org = %(org)s
) as own
join queue_pg.job_steps s on s.job_id = own.id
cross join lateral (select s.result::text as result offset 0) r
order by s.begun_at desc, s.name desc
limit %(limit)s::integer
