select
  pg_table_size('queue_pg.jobs'),
  pg_indexes_size('queue_pg.jobs'),
  (select sum(pg_total_relation_size(relid)) from pg_partition_tree('queue_pg.finished_jobs'))::bigint
