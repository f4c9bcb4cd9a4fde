/* queue_pg:look_templates */
-- Job templates as people look at them: all in their newest versions, with the names of some variables, or (name) one in
-- one version, with the variables, and the payload's first characters and its size.
select
  t.name, t.version, t.kind::text as kind, t.queue::text as queue, t.priority, t.max_attempts::integer as max_attempts,
  extract(epoch from t.timeout)::float8 as timeout_seconds,
  coalesce(t.cache, t.cache_for is not null or t.cache_version is not null) as caches,
  extract(epoch from t.cache_for)::float8 as cache_for_seconds, t.cache_version, array(select jsonb_object_keys(t.variables) limit 12) as names,
  case when %(name)s::text is not null then left(t.variables::text, 262144) end as variables, t.description, t.created_at, left(d.payload, %(characters)s::integer) as payload,
  octet_length(d.payload) as payload_bytes, queue_pg.now() as now
from queue_pg.job_templates t
cross join lateral (select case when %(name)s::text is not null then t.payload::text end as payload offset 0) d
where t.org = %(org)s::text
  and (%(name)s::text is null or t.name = %(name)s)
  and (%(after)s::text is null or t.name > %(after)s)
  and case when %(version)s::integer is not null then t.version = %(version)s
    else t.version = (select max(n.version) from queue_pg.job_templates n where n.org = t.org and n.name = t.name) end
order by t.name
limit %(limit)s::integer
