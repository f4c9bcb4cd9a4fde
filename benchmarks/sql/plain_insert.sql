insert into plain_jobs (kind, payload) values (%s, %s) returning id
