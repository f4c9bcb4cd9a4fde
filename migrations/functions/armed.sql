-- Who is to be woken. NOTIFY is a hint and the rows are the truth: every listener polls as well.
--
-- Interrupt when idle, poll when busy, like a network card under load. A NOTIFY takes a lock at commit that the whole
-- instance shares, so an application must not pay it for workers that are awake anyway. A worker that finds nothing for
-- a while arms its queues; an INSERT notifies only while its queue is armed; a worker with traffic disarms and looks by
-- itself every few milliseconds. What is armed are bits of the sequence queue_pg.armed: 0 to 31 are queues by the hash of
-- their name, 61 is for observers (following.sql), 62 is maintenance; 60 says that some queue is draining (control.sql). Two queues with one bit cost each other a hint too many, no more.
--
-- A hint can be missing: a transaction that inserted before the queue was armed and commits after the worker has looked
-- sends none. So whoever arms looks once more soon after, and at its poll interval for ever.

create or replace function queue_pg.armed_bit(queue text) returns bigint
language sql immutable strict parallel safe
return 1::bigint << (hashtext(queue) & 31);

comment on function queue_pg.armed_bit(text) is 'The bit of queue_pg.armed for a queue.';

create or replace function queue_pg.is_armed(queue text) returns boolean
language sql volatile parallel safe
return pg_sequence_last_value('queue_pg.armed') & queue_pg.armed_bit(queue) <> 0;

comment on function queue_pg.is_armed(text) is 'Whether an INSERT into this queue notifies.';

-- Sets and clears bits. A lost race between two who change different bits costs one of them a hint until its next look;
-- the lock makes that rare, and is only tried, because it lasts as long as a caller's transaction.
create or replace function queue_pg.change_armed(to_set bigint, to_clear bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_armed bigint := pg_sequence_last_value('queue_pg.armed');
begin
  if (v_armed | to_set) & ~to_clear = v_armed or not pg_try_advisory_xact_lock(7310579610401947747) then
    return;
  end if;
  perform setval('queue_pg.armed', (pg_sequence_last_value('queue_pg.armed') | to_set) & ~to_clear);
end
$$;

-- Asks for a NOTIFY queue_pg_wake with the queue's name from the next INSERT. A no-op when settings.notify is off.
create or replace function queue_pg.arm(queues text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select queue_pg.change_armed((select bit_or(queue_pg.armed_bit(q)) from unnest(queues) q), 0)
  from queue_pg.settings s where s.notify and cardinality(queues) > 0
$$;

comment on function queue_pg.arm(text[]) is 'Asks for a NOTIFY from the next INSERT into these queues.';

create or replace function queue_pg.disarm(queues text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select queue_pg.change_armed(0, (select bit_or(queue_pg.armed_bit(q)) from unnest(queues) q))
  where cardinality(queues) > 0
$$;

comment on function queue_pg.disarm(text[]) is 'Takes queue_pg.arm() back: the caller looks by itself every few milliseconds.';

-- The same for maintenance: a NOTIFY queue_pg_due from the next job that is scheduled to start within two seconds.
create or replace function queue_pg.arm_due() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$ select queue_pg.change_armed(1::bigint << 62, 0) from queue_pg.settings s where s.notify $$;

create or replace function queue_pg.disarm_due() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$ select queue_pg.change_armed(0, 1::bigint << 62) $$;

comment on function queue_pg.arm_due() is 'Asks for a NOTIFY queue_pg_due from the next job scheduled for the next two seconds.';
comment on function queue_pg.disarm_due() is 'Takes queue_pg.arm_due() back.';

-- Clears the bits of queues that nobody live waits for, left behind by workers that died: their inserts would notify
-- nobody for ever. `kept` are the queues that somebody does serve.
create or replace function queue_pg.tidy_armed(kept text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select queue_pg.change_armed(0, ~(
    1::bigint << 62 | (1::bigint << 60) | coalesce((select bit_or(queue_pg.armed_bit(q)) from unnest(kept) q), 0)
    -- following.sql
    | case when exists (select from queue_pg.observers) then 1::bigint << 61 else 0 end))
$$;

comment on function queue_pg.tidy_armed(text[]) is 'Disarms all queues but these.';

-- A role that may do nothing but INSERT reads the bits too: the trigger's WHEN is evaluated with its rights.
grant select on sequence queue_pg.armed to public;
