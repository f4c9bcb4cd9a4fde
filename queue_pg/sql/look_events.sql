/* queue_pg:look_events */
-- The newest stored events of a job that tell of its state; what its handler says is look_said.sql's.
select e.seq, e.at, e.type, left(e.data::text, %(characters)s::integer) as data, octet_length(e.data::text) as bytes,
  (e.data ->> 'attempt')::text as attempt, left(e.data ->> 'worker_id', 200) as worker_id,
  left(e.data -> 'error' ->> 'code', 200) as error_code, left(e.data -> 'error' ->> 'message', 2000) as error_message
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
join queue_pg.job_events e on e.job_id = own.id
where e.type = any (queue_pg.reserved_events())
order by e.seq desc
limit %(limit)s::integer
