/* queue_pg:job_states */
-- What `watch` answers, without asking for a notification.
select j.id, j.state::text as state
from unnest(%(ids)s::uuid[]) as wanted (id)
cross join lateral queue_pg.job(wanted.id) j
