/* queue_pg:complete_artifact */
select a.name, a.size, encode(a.sha256, 'hex') as sha256, a.content_type, a.attempt, a.created_at
from (select set_config('synchronous_commit', 'on', true)) as durable,
  lateral queue_pg.complete_artifact(%(upload_id)s::uuid, %(sha256)s::bytea) a
