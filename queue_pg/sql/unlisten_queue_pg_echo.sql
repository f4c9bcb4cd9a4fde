/* queue_pg:unlisten_queue_pg_echo */
unlisten queue_pg_echo
