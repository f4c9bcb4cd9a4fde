/* queue_pg:listen_queue_pg_echo */
listen queue_pg_echo
