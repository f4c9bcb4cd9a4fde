/* queue_pg:look_job */
-- A job as people look at it: its row, and of each document that is asked for the first characters and its size. What
-- is not asked for is not read; `offset 0` has each written out as text once.
select
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  left(j.error ->> 'code', 200) as error_code, left(j.error ->> 'message', 2000) as error_message,
  left(d.payload, %(characters)s::integer) as payload, octet_length(d.payload) as payload_bytes,
  left(d.result, %(characters)s::integer) as result, octet_length(d.result) as result_bytes,
  left(d.error, %(characters)s::integer) as error, octet_length(d.error) as error_bytes,
  left(d.metadata, %(characters)s::integer) as metadata, octet_length(d.metadata) as metadata_bytes,
  queue_pg.now() as now
from queue_pg.job(%(id)s::uuid) j
cross join lateral (
  select
    case when 'payload' = any (%(documents)s::text[]) then j.payload::text end as payload,
    case when 'result' = any (%(documents)s::text[]) then j.result::text end as result,
    case when 'error' = any (%(documents)s::text[]) then j.error::text end as error,
    case when 'metadata' = any (%(documents)s::text[]) then j.metadata::text end as metadata
  offset 0
) d
where %(org)s::text is null or j.org = %(org)s
