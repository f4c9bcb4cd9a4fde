/* queue_pg:listen_queue_pg_cancel */
listen queue_pg_cancel
