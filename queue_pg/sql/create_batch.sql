/* queue_pg:create_batch */
select queue_pg.create_batch(
  %(name)s::text, %(on_complete)s::text::jsonb, %(on_failed)s::text::jsonb, %(on_all)s::text::jsonb,
  %(metadata)s::text::jsonb, %(org)s::text, %(on_first_failed)s::text::jsonb) as id
from (select set_config('synchronous_commit', 'on', true)) as durable
