/* queue_pg:testing_clock_function */
create or replace function queue_pg.now() returns timestamptz
language sql volatile parallel safe
return clock_timestamp() + (select c.moved from queue_pg.testing_clock c)
