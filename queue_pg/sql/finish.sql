/* queue_pg:finish */
select f.id::text, f.accepted, f.state
from (select set_config('synchronous_commit', 'on', true) as value offset 0) as pin,
  -- By an argument of it, since a batch without any answer must be durable as well.
  lateral queue_pg.finish(
    case when pin.value = 'on' then %(ids)s::uuid[] end, %(lease_tokens)s::bigint[], %(outcomes)s::text[],
    %(results)s::text[]::jsonb[], %(errors)s::text[]::jsonb[], %(delays)s::interval[]) as f
where not f.accepted or f.state <> 'completed'
