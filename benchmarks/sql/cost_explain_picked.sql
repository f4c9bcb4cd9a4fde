insert into picked select j.id from queue_pg.jobs j where j.state = 'queued'
order by j.queue, j.org, j.priority desc, j.run_at, j.id limit 500
