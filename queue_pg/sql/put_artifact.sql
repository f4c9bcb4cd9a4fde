/* queue_pg:put_artifact */
select a.name, a.size, encode(a.sha256, 'hex') as sha256, a.content_type, a.attempt, a.created_at
from (select set_config('synchronous_commit', 'on', true)) as durable,
  (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
cross join lateral queue_pg.put_artifact(
  own.id, %(name)s::text, %(data)b::bytea, %(content_type)s::text, %(lease_token)s::bigint) a
