with claimed as materialized (
  select c.id, c.lease_token from queue_pg.claim('bench', '{default}', '{noop}', %(wanted)s) c
)
select array_agg(c.id), array_agg(c.lease_token), array_agg(coalesce(j.limit_key::text, ''))
from claimed c join queue_pg.jobs j on j.id = c.id
having count(*) > 0
