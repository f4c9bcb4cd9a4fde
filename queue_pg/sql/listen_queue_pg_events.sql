/* queue_pg:listen_queue_pg_events */
listen queue_pg_events
