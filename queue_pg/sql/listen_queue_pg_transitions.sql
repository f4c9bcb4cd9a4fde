/* queue_pg:listen_queue_pg_transitions */
listen queue_pg_transitions
