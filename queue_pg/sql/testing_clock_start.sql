/* queue_pg:testing_clock_start */
insert into queue_pg.testing_clock (moved)
select '0' where not exists (select from queue_pg.testing_clock)
