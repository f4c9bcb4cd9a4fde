/* queue_pg:migration_lock */
-- One applier at a time. A transaction-level lock: a session-level one would outlive us on a pooled connection.
select pg_advisory_xact_lock(7310579610401947744)
