/* queue_pg:listen_queue_pg_result */
listen queue_pg_result
