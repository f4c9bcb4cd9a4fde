-- Waking idle workers and maintenance: see armed.sql for who gets a NOTIFY and why.

-- A NOTIFY, unless the server's queue of notifications is nearly full: then a session that listens has stayed in a
-- transaction, and each COMMIT that notifies would fail soon. What is not told is found by looking.
create or replace function queue_pg.send_hint(channel text, payload text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_notification_queue_usage() < 0.9 then
    perform pg_notify(channel, payload);
  end if;
end
$$;

comment on function queue_pg.send_hint(text, text) is 'NOTIFY at commit, except while the server''s queue of notifications is nearly full.';

-- Tells those who wait for this queue ('': for any) that something may be claimable; delivered at commit, once.
create or replace function queue_pg.wake(queue text default '') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if (wake.queue = '' and (select s.notify from queue_pg.settings s))
    or (wake.queue <> '' and queue_pg.is_armed(wake.queue)) then
    perform queue_pg.send_hint('queue_pg_wake', wake.queue);
  end if;
end
$$;

comment on function queue_pg.wake(text) is 'Wakes the idle workers of a queue at commit, or of all; a no-op when none is armed.';

create or replace function queue_pg.wake_due(run_at timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_sequence_last_value('queue_pg.armed') & (1::bigint << 62) <> 0 and run_at < queue_pg.now() + interval '2 seconds' then
    perform queue_pg.send_hint('queue_pg_due', '');
  end if;
end
$$;

comment on function queue_pg.wake_due(timestamptz) is 'Wakes maintenance at commit when this moment comes before its next look.';
