/* queue_pg:backend_pid */
select pg_backend_pid()
