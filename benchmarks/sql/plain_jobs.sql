create table plain_jobs (like queue_pg.jobs including all)
