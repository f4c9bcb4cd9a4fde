/* queue_pg:submit_template */
select s.id::text as id, s.created
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable,
  queue_pg.submit_many(jsonb_build_array(queue_pg.template_job(
    %(name)s::text, %(variables)s::text::jsonb, nullif(%(version)s::text, '')::integer, %(options)s::text::jsonb,
    %(org)s::text))) s
