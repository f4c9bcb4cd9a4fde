/* queue_pg:leases_of */
select l.id, l.lease_token, extract(epoch from l.age)::float8 as age from queue_pg.leases_of(%(worker_id)s) l
