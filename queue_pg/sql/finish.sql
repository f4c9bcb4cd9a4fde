/* queue_pg:finish */
select f.*
from (select set_config('synchronous_commit', 'on', true)) as durable,
  queue_pg.finish(
    %(ids)s::uuid[], %(lease_tokens)s::bigint[], %(outcomes)s::text[], %(results)s::text[]::jsonb[],
    %(errors)s::text[]::jsonb[], %(delays)s::interval[]) f
