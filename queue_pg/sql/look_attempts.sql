/* queue_pg:look_attempts */
-- Attempts of a job as people look at them: of the errors no more than their first characters.
select
  a.seq, a.attempt, a.worker_id, a.outcome, a.started_at, a.ended_at, a.ended_seq, a.ran_seconds,
  left(a.error ->> 'code', 200) as error_code, left(a.error ->> 'message', 2000) as error_message
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
cross join lateral queue_pg.attempts(own.id, %(after)s::integer, %(limit)s::integer) with ordinality a
order by a.ordinality
