/* queue_pg:dependencies */
-- The parents and children of a job, at most `limit` of each, with the state each is in (null: forgotten), and how many
-- there are. No row when there is no such job.
select
  (select count(*) from queue_pg.dependencies d where d.child_id = own.id) as parents_count,
  (select count(*) from queue_pg.dependencies d where d.parent_id = own.id) as children_count,
  (select coalesce(json_agg(json_build_object('id', p.parent_id, 'name', p.name, 'on_unsuccessful', p.on_unsuccessful,
      'outcome', p.outcome, 'state', queue_pg.state_of(p.parent_id)) order by p.name), '[]')
    from (select d.* from queue_pg.dependencies d where d.child_id = own.id order by d.name limit %(limit)s::integer) p
  )::text as parents,
  (select coalesce(json_agg(json_build_object('id', c.child_id, 'name', c.name, 'on_unsuccessful', c.on_unsuccessful,
      'outcome', c.outcome, 'state', queue_pg.state_of(c.child_id)) order by c.child_id), '[]')
    from (select d.* from queue_pg.dependencies d where d.parent_id = own.id order by d.child_id limit %(limit)s::integer) c
  )::text as children
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
