/* queue_pg:list_artifacts */
-- One row with nulls for a job that has none, no row for a job that is not there.
select a.name, a.size, a.sha256, a.content_type, a.attempt, a.created_at
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
left join lateral queue_pg.list_artifacts(own.id) a on true
