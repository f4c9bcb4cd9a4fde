/* queue_pg:begin_artifact */
-- Not waited for on disk, as each chunk: the commit that completes the upload takes them along.
select queue_pg.begin_artifact(
  own.id, %(name)s::text, %(content_type)s::text, %(lease_token)s::bigint, %(size)s::bigint) as id
from (select set_config('synchronous_commit', 'off', true)) as lazy,
  (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
