select count(*) from queue_pg.jobs
