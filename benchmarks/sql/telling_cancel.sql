select queue_pg.cancel(id) from queue_pg.jobs
