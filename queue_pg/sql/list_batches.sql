/* queue_pg:list_batches */
-- Newest first by id; `before` is the last id of the page before.
select
  p.id, p.org, p.name, p.state, p.run, p.total, null::bigint as scheduled, null::bigint as waiting,
  null::bigint as queued, null::bigint as running, p.completed, p.failed, p.cancelled, p.unfinished, p.percent,
  p.on_complete::text as on_complete, p.on_failed::text as on_failed, p.on_all::text as on_all, p.callback_ids,
  p.callback_error, p.metadata::text as metadata, p.created_at, p.closed_at, p.cancelled_at, p.finished_at,
  p.on_first_failed::text as on_first_failed, p.first_failed_at, p.first_failed_id
from queue_pg.batch_progress p
where (%(org)s::text is null or p.org = %(org)s)
  and (%(state)s::text is null or p.state = %(state)s)
  and (%(name)s::text is null or p.name = %(name)s)
  and (%(before)s::uuid is null or p.id < %(before)s)
order by p.id desc
limit %(limit)s::integer
