/* queue_pg:testing_clock_table */
create table if not exists queue_pg.testing_clock (moved interval not null)
