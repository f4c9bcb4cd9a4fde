/* queue_pg:attempts */
-- The attempts of a job in order, `found` of them, of which those are handed out that begin within `max_bytes` of errors. One
-- row without an ordinality when there are none; no row when there is no such job.
select
  a.ordinality, a.found, a.seq, a.attempt, a.worker_id, a.outcome, a.started_at, a.ended_at, a.waited_seconds, a.ran_seconds,
  a.error::text as error, a.run_at, a.ended_seq, a.model, a.usage::text as usage
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
left join lateral (
  select t.*, count(*) over () as found,
    sum(octet_length(t.error::text)) over (order by t.ordinality rows between unbounded preceding and 1 preceding) as bytes
  from queue_pg.attempts(own.id, %(after)s::integer, %(max_rows)s::integer) with ordinality t
) a on coalesce(a.bytes, 0) < %(max_bytes)s::bigint
order by a.ordinality
