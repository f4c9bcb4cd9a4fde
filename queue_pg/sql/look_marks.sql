/* queue_pg:look_marks */
-- For each job that exists a text that changes whenever something happens to it.
select w.id, concat_ws(' ', m.state, m.lease_token, m.attempt, m.last_event_seq, s.steps, s.signals, a.artifacts, a.bytes) as mark
from unnest(%(ids)s::uuid[]) as w (id)
cross join lateral (
  select l.state, l.lease_token, l.attempt, l.last_event_seq from queue_pg.jobs l where l.id = w.id and l.org = %(org)s
  union all
  select f.state, f.lease_token, f.attempt, f.last_event_seq
  from queue_pg.finished_jobs f
  where f.id = w.id and f.org = %(org)s and f.retain_until > queue_pg.now()
) m
left join queue_pg.stepped_jobs s on s.job_id = w.id
left join queue_pg.artifact_totals a on a.job_id = w.id
