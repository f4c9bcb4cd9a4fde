select id, lease_token from queue_pg.claim('bench', array['default'], max_jobs => %s)
