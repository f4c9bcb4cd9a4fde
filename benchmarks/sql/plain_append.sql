insert into plain_events (job_id, seq, at, type, data)
select e.job_id, e.seq, now(), e.type, e.data
from unnest(%s::uuid[], %s::integer[], %s::text[], %s::text[]::jsonb[]) as e (job_id, seq, type, data)
