/* queue_pg:wait_for_event */
select
  s.name, s.type, s.result::text as result, s.timed_out, s.until, s.attempt, s.begun_at, s.finished_at
from (select set_config('synchronous_commit', 'on', true)) as durable
cross join lateral queue_pg.wait_for_event(
  %(id)s::uuid, %(lease_token)s::bigint, %(name)s::text, %(timeout)s::interval) as s
