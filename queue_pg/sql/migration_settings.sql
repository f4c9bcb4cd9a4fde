/* queue_pg:migration_settings */
-- Local to the transaction, so that a pooled server connection does not keep them. Bodies are not checked at creation:
-- functions refer to each other, and the files are applied in the order of their names.
select set_config('lock_timeout', %(lock_timeout_ms)s || 'ms', true), set_config('check_function_bodies', 'off', true),
  set_config('client_min_messages', 'warning', true), set_config('queue_pg.migration_lock_ms', %(lock_timeout_ms)s, true)
