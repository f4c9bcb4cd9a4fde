/* queue_pg:migrations_applied */
select name, checksum, breaking, version from queue_pg.migrations order by name
