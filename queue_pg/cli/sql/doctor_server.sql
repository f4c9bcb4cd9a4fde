/* queue_pg:doctor_server */
-- What the server says of itself; needs no schema and no privilege.
select
  pg_is_in_recovery() as in_recovery,
  current_setting('fsync') = 'on' as fsync,
  current_setting('full_page_writes') = 'on' as full_page_writes,
  current_setting('synchronous_commit') as synchronous_commit,
  current_setting('autovacuum') = 'on' as autovacuum,
  clock_timestamp() as clock,
  pg_notification_queue_usage() as notify_usage,
  current_setting('max_connections')::integer as max_connections,
  (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
  current_user::text as role
