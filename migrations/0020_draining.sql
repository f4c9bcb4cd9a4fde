-- breaking: no
-- A queue may be drained: it takes no new jobs, and those it has are done.

alter table queue_pg.queues add column draining boolean not null default false;

comment on column queue_pg.queues.draining is 'It refuses new jobs until it is resumed; those it has are done. Set by drain_queue().';
comment on sequence queue_pg.armed is
  'Who waits for a NOTIFY, as bits: 0 to 31 queues by the hash of their name, 61 observers, 62 maintenance. 60: some queue is draining. Not a counter.';

-- Made anew by functions/stats.sql with one more column in its answer, and by functions/views.sql.
drop view if exists queue_pg.overview;
drop function if exists queue_pg.queue_stats(text);
