/* queue_pg:get_artifact */
-- One row with nulls for an artifact that is not there, no row for a job that is not there.
select a.name, a.size, encode(a.sha256, 'hex') as sha256, a.content_type, a.attempt, a.created_at,
  b.id as blob_id, b.chunks_sha256,
  (select coalesce(string_agg(c.sha256, ''::bytea order by c.number), ''::bytea)
    from queue_pg.blob_chunks c where c.blob_id = b.id) as chunks
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
left join queue_pg.artifacts a on a.job_id = own.id and a.name = queue_pg.artifact_name(%(name)s::text)
left join queue_pg.blobs b on b.sha256 = a.sha256
