select pg_table_size('queue_pg.jobs'), pg_indexes_size('queue_pg.jobs')
