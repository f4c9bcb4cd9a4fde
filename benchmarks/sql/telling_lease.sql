select c.id::text, c.lease_token
from queue_pg.claim('bench', array['default'], null, %s, interval '10 minutes') c
