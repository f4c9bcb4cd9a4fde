/* queue_pg:look_family */
-- The jobs that a job waits for and those that wait for it, theirs too, and so on: at most `limit` edges up and `limit`
-- down, the nearest first. A recursion is worked out row by row as far as it is read, so that a big graph costs no more.
with recursive own as materialized (
  select o.id, o.kind::text as kind, o.state::text as state
  from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s
),
up as (
  select d.parent_id, d.child_id, d.name, d.on_unsuccessful, d.outcome
  from own join queue_pg.dependencies d on d.child_id = own.id
  union
  select d.parent_id, d.child_id, d.name, d.on_unsuccessful, d.outcome
  from up join queue_pg.dependencies d on d.child_id = up.parent_id
),
down as (
  select d.parent_id, d.child_id, d.name, d.on_unsuccessful, d.outcome
  from own join queue_pg.dependencies d on d.parent_id = own.id
  union
  select d.parent_id, d.child_id, d.name, d.on_unsuccessful, d.outcome
  from down join queue_pg.dependencies d on d.parent_id = down.child_id
),
edges as materialized (
  (select u.* from up u limit %(limit)s::integer) union (select d.* from down d limit %(limit)s::integer)
),
nodes as materialized (
  select e.parent_id as id from edges e union select e.child_id from edges e
)
select
  (select coalesce(json_agg(json_build_object('parent', e.parent_id, 'child', e.child_id, 'name', e.name,
      'on_unsuccessful', e.on_unsuccessful, 'outcome', e.outcome) order by e.child_id, e.name), '[]') from edges e
  )::text as edges,
  (select coalesce(json_agg(json_build_object('id', n.id, 'kind', j.kind, 'state', j.state) order by n.id), '[]')
    from nodes n left join lateral queue_pg.job(n.id) j on true
  )::text as nodes
from own
