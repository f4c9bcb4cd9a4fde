select id, lease_token from queue_pg.claim('bench', array['default'], array['noop'], max_jobs => %s)
