-- breaking: no
-- What monitoring counts: totals that only grow, although history is forgotten and failed jobs are retried.

alter table queue_pg.queue_counters
  add column gone_completed bigint,
  add column gone_failed bigint,
  add column gone_cancelled bigint,
  add column retried bigint,
  add column lease_losses bigint,
  add column failed_webhooks bigint;

comment on column queue_pg.queue_counters.gone_completed is
  'Completed jobs that completed counts no more, because they are forgotten: together they are all there ever were.';
comment on column queue_pg.queue_counters.gone_failed is 'Failed jobs that are forgotten, or were retried by somebody.';
comment on column queue_pg.queue_counters.gone_cancelled is 'Cancelled jobs that are forgotten, or were retried by somebody.';
comment on column queue_pg.queue_counters.retried is 'Attempts that failed and were followed by another one.';
comment on column queue_pg.queue_counters.lease_losses is 'Leases that ran out, because a worker vanished.';
comment on column queue_pg.queue_counters.failed_webhooks is 'Jobs of kind webhook that failed for good.';
