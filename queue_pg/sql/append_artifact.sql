/* queue_pg:append_artifact */
select queue_pg.append_artifact(%(upload_id)s::uuid, %(number)s::integer, %(data)b::bytea)
from (select set_config('synchronous_commit', 'off', true)) as lazy
