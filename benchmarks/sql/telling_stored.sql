select count(*) from queue_pg.job_events where type in ('log', 'chunk', 'tick')
