insert into queue_pg.jobs (kind, payload, limit_key)
select 'noop', to_jsonb(n), %(key)s || case when %(keys)s > 1 then mod(n, %(keys)s)::text else '' end
from generate_series(1, %(jobs)s) n
