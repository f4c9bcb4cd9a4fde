/* queue_pg:migration_table_exists */
select to_regclass('queue_pg.migrations') is not null
