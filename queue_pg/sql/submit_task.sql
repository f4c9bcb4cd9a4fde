/* queue_pg:submit_task */
-- A task that is planned by the rules, as sql/submit.sql has a job.
select
  s.created,
  (select to_json(r) from (select
    j.id, j.org, j.queue, j.kind, j.state, j.priority, j.run_at, j.attempt, j.max_attempts, j.lease_token,
    j.lease_expires_at, j.worker_id, extract(epoch from j.timeout) as timeout_seconds, j.expires_at, j.unique_key,
    j.limit_key, j.cost, j.parent_id, j.batch_id, j.tags, j.traceparent, j.created_at, j.started_at, j.finished_at,
    j.rerun_of, j.cached_from
  ) r)::text as job,
  j.payload::text as payload, j.result::text as result, j.error::text as error, j.metadata::text as metadata,
  f.status, f.parent_task_id::text as parent_task_id, to_json(f.subtasks)::text as subtasks
from (select case when %(pin)s::text = 'on' then set_config('synchronous_commit', 'on', true) end) as durable,
  queue_pg.submit_by_rules(%(jobs)s::text::jsonb -> 0) s
cross join lateral queue_pg.job(s.id) j
cross join lateral queue_pg.task_facts(j.id, j.state, j.parent_id) f
