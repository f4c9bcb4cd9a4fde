/* queue_pg:templates */
-- One template in one version, or (name null) all in their newest.
select
  t.org, t.name, t.version, t.kind::text as kind, t.queue::text as queue, t.priority, t.max_attempts::integer as max_attempts,
  extract(epoch from t.timeout)::double precision as timeout_seconds, t.payload::text as payload,
  t.variables::text as variables, t.description, t.created_at, t.limit_key::text as limit_key, t.cost::integer as cost,
  t.cache, extract(epoch from t.cache_for)::double precision as cache_for_seconds, t.cache_version
from queue_pg.job_templates t
where (%(org)s::text is null or t.org = %(org)s)
  and (%(name)s::text is null or t.name = %(name)s)
  and (%(after)s::text is null or t.name > %(after)s)
  and case when %(version)s::integer is not null then t.version = %(version)s
    else t.version = (
      select max(n.version) from queue_pg.job_templates n where n.org = t.org and n.name = t.name) end
order by t.name, t.org
limit %(limit)s::integer
