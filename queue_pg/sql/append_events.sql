/* queue_pg:append_events */
select a.id::text, a.accepted, a.state, a.last_seq, a.appended, a.followed
from (select set_config('synchronous_commit', 'on', true) as value offset 0) as pin,
  -- By an argument of it, so that it comes first: an event that somebody has read must not be taken back by a crash.
  lateral queue_pg.append_events(
    case when pin.value = 'on' then %(ids)s::uuid[] end, %(lease_tokens)s::bigint[], %(types)s::text[],
    %(data)s::text[]::jsonb[]) as a
