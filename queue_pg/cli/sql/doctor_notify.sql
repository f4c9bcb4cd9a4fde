/* queue_pg:doctor_notify */
select pg_notify('queue_pg_doctor', %(token)s)
