/* queue_pg:listen_queue_pg_due */
listen queue_pg_due
