/* queue_pg:appended */
-- Of leases that still stand: whether something was appended by the lease, and how much to the job in all. A statement that
-- was only cut off may be under way still: the lock waits for its end.
select j.id::text, j.logged_token is not distinct from j.lease_token as logged, coalesce(j.appended_events, 0) as appended
from unnest(%(ids)s::uuid[], %(lease_tokens)s::bigint[]) as i (id, lease_token)
join queue_pg.jobs j on j.id between i.id and i.id
where j.lease_expires_at is not null and j.lease_token = i.lease_token
order by i.id for no key update of j
