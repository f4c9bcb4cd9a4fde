/* queue_pg:echo */
select pg_notify('queue_pg_echo', %(payload)s::text)
