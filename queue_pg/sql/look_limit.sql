/* queue_pg:look_limit */
-- For the transaction that it is the first statement of.
select set_config('statement_timeout', %(milliseconds)s::text, true)
