/* queue_pg:get_batch */
-- What is unfinished is counted by state only `with_states`: that reads an index entry and a row for each of them.
select
  p.id, p.org, p.name, p.state, p.run, p.total, s.scheduled, s.waiting, s.queued, s.running, p.completed, p.failed,
  p.cancelled, p.unfinished, p.percent, p.on_complete::text as on_complete, p.on_failed::text as on_failed,
  p.on_all::text as on_all, p.callback_ids, p.callback_error, p.metadata::text as metadata, p.created_at, p.closed_at,
  p.cancelled_at, p.finished_at,
  p.on_first_failed::text as on_first_failed, p.first_failed_at, p.first_failed_id
from queue_pg.batch(%(id)s::uuid) p
left join lateral (
  select count(*) filter (where j.state = 'scheduled') as scheduled, count(*) filter (where j.state = 'waiting') as waiting,
    count(*) filter (where j.state = 'queued') as queued, count(*) filter (where j.state = 'running') as running
  from queue_pg.jobs j where j.batch_id = %(id)s::uuid
) s on %(with_states)s::boolean
where %(org)s::text is null or p.org = %(org)s
