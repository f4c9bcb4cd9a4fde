/* queue_pg:listen_queue_pg_wake */
listen queue_pg_wake
