/* queue_pg:migration_tables */
-- For migration_locks, which as a block of code takes no parameters.
select set_config('queue_pg.migration_tables', %(tables)s, true)
