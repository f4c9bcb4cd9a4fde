/* queue_pg:migration_record */
insert into queue_pg.migrations as m (name, checksum, breaking, version)
values (%(name)s, %(checksum)s, %(breaking)s, %(version)s)
on conflict (name) do update
set checksum = excluded.checksum, breaking = excluded.breaking, version = excluded.version, applied_at = clock_timestamp()
