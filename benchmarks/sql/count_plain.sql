select count(*) from plain_jobs
