/* queue_pg:vacuum_queue_counters */
vacuum (skip_locked, truncate false, index_cleanup on, parallel 0) queue_pg.queue_counters
