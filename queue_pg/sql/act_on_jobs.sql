/* queue_pg:act_on_jobs */
select a.matched, a.changed, a.skipped::text as skipped, a.last_id, a.as_of
from (select set_config('synchronous_commit', 'on', true)) as durable
cross join lateral queue_pg.act_on_jobs(
  %(action)s::text, %(filter)s::text::jsonb, %(org)s::text, %(reason)s::text, %(priority)s::integer,
  %(max_attempts)s::integer, %(fresh)s::boolean, %(dry_run)s::boolean, %(max_jobs)s::integer, %(after)s::uuid,
  %(as_of)s::timestamptz) a
