/* queue_pg:submit_template */
select s.id::text as id, s.created, queue_pg.wants_cache(t.job) as caches
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable
cross join lateral (
  -- Once, which OFFSET 0 sees to.
  select queue_pg.template_job(
    %(name)s::text, %(variables)s::text::jsonb, nullif(%(version)s::text, '')::integer, %(options)s::text::jsonb,
    %(org)s::text) as job
  offset 0) t
cross join lateral queue_pg.submit_many(jsonb_build_array(t.job)) s
