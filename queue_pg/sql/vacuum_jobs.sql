/* queue_pg:vacuum_jobs */
vacuum (skip_locked, truncate false, index_cleanup on, parallel 0) queue_pg.jobs
