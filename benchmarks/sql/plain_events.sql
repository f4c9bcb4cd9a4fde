create table plain_events (like queue_pg.job_events including all)
