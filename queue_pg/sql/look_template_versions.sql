/* queue_pg:look_template_versions */
-- The newest versions of a job template.
select t.version, t.created_at
from queue_pg.job_templates t
where t.org = %(org)s::text and t.name = %(name)s::text
order by t.version desc
limit %(limit)s::integer
