-- Reading one job, live or finished.

-- VOLATILE on purpose: so it sees a job that the same statement has just submitted, and
--   select s.created, j.* from queue_pg.submit_many(...) s cross join lateral queue_pg.job(s.id) j
-- is one round trip.
create or replace function queue_pg.job(id uuid) returns setof queue_pg.all_jobs
language sql volatile as $$
  select a.* from queue_pg.all_jobs a where a.id = job.id
$$;

comment on function queue_pg.job(uuid) is 'The job with this id, live or finished; no row when there is none.';

-- The state of a job in words for errors: null when nobody knows the id.
create or replace function queue_pg.state_of(id uuid) returns text
language sql volatile as $$
  select a.state::text from queue_pg.all_jobs a where a.id = state_of.id
$$;

-- Marks live jobs so that their end sends NOTIFY queue_pg_result, and tells the state of each id that exists.
-- The row lock orders this against finish(): either finish() sees the mark, or this sees the finished job. So no end
-- is missed, and jobs nobody waits for send nothing.
create or replace function queue_pg.watch(ids uuid[]) returns table (id uuid, state queue_pg.job_state)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queues text[];
begin
  -- A row that ended while this waited for its lock is simply not updated; the select below finds it finished.
  with marked as (
    update queue_pg.jobs j set watched = true
    from (
      select l.id from queue_pg.jobs l where l.id = any (watch.ids) and not l.watched order by l.id for no key update
    ) as locked
    where j.id between locked.id and locked.id
    returning j.state, j.queue
  )
  select array_agg(distinct m.queue::text) filter (where m.state = 'queued') into v_queues from marked m;
  -- A claim that came while the row was locked has skipped it, and its worker would not look again before its poll.
  perform queue_pg.send_hint('queue_pg_wake', q) from unnest(v_queues) q, queue_pg.settings s where s.notify;
  return query select a.id, a.state from queue_pg.all_jobs a where a.id = any (watch.ids);
end
$$;

comment on function queue_pg.watch(uuid[]) is 'Makes the end of these jobs send NOTIFY queue_pg_result with the id, and tells their states.';
