-- One process at a time maintains, so that a fleet asks the database no more than a single process does. The lead is a
-- row with a date and not a lock, because behind a pooler no session is anybody's own. It only saves work: two leaders
-- at once do everything right, and waste one's time.

-- One round of maintenance by `leader`, the name of a process. It takes the lead when nobody has it, keeps it while it
-- comes back within 1.5 s, and has maintain() take a step. For everybody else the call only makes an appointment: they
-- come one after the other, a second apart, so that the fleet's looks hardly grow with it; a process is at most 20 s
-- away from its next one. Then only leads, at and next_look_seconds are not null.
-- `since` is the `at` of the caller's last round; maintain() says what for. `age` is how long the caller has been there (null:
-- for long), and its next look is no further away than that: processes that crash soon after their start would make
-- appointments that nobody keeps, and who lives would stand behind them. took_seconds is this call's own time.
drop function if exists queue_pg.lead_maintenance(text, integer, boolean, timestamptz, interval);
create or replace function queue_pg.lead_maintenance(
  leader text, max_jobs integer default 1000, arm boolean default null, since timestamptz default null,
  within interval default '1 second', age interval default null)
returns table (
  leads boolean, reaped integer, promoted integer, expired integer, busy boolean, next_due_seconds double precision,
  at timestamptz, took_seconds double precision, next_look_seconds double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_started timestamptz := clock_timestamp();
  v_term constant interval := '1.5 seconds';
  v_maintenance queue_pg.maintenance;
  v_free_at timestamptz;
begin
  at := queue_pg.now();
  select m.* into v_maintenance from queue_pg.maintenance m;
  if not found then
    insert into queue_pg.maintenance default values on conflict do nothing returning * into v_maintenance;
  end if;

  leads := v_maintenance.leader = lead_maintenance.leader;
  if leads then
    -- A date beyond the term is one from before the clock went back.
    if v_maintenance.leader_until not between at + v_term / 2 and at + v_term then
      update queue_pg.maintenance m set leader_until = at + v_term where m.leader = lead_maintenance.leader;
      leads := found;
    end if;
  else
    -- Who finds the row locked meets the leader in its step, or another one who looks.
    select m.* into v_maintenance from queue_pg.maintenance m for update skip locked;
    leads := found and v_maintenance.leader_until not between at and at + v_term;
    if leads then
      update queue_pg.maintenance m set leader = lead_maintenance.leader, leader_until = at + v_term;
    elsif found then
      v_free_at := least(greatest(v_maintenance.next_look_at, at), at + interval '19 seconds') + interval '1 second';
      next_look_seconds := extract(epoch from v_free_at - at);
      if next_look_seconds > extract(epoch from age) then
        next_look_seconds := (0.5 + random() / 2) * greatest(extract(epoch from age), 1);
      else
        update queue_pg.maintenance m set next_look_at = v_free_at;
      end if;
    end if;
  end if;

  next_look_seconds := coalesce(next_look_seconds, 0.5 + random() / 2);
  if leads then
    next_look_seconds := 0;
    select s.reaped, s.promoted, s.expired, s.busy, s.next_due_seconds
    into reaped, promoted, expired, busy, next_due_seconds
    from queue_pg.maintain(max_jobs, arm, since, within) s;
  end if;
  if not leads or reaped + promoted + expired = 0 then
    -- A crash may forget who leads; an idle system need not wait for its disk every second.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  took_seconds := extract(epoch from clock_timestamp() - v_started);
  return next;
end
$$;

comment on function queue_pg.lead_maintenance is
  'A round of maintenance by one process of a fleet: a step when it leads, else when to look again.';

-- Ends a lead, so that the next one who looks need not wait for its end.
create or replace function queue_pg.resign_maintenance(leader text) returns void
language sql as $$
  update queue_pg.maintenance m set leader_until = '-infinity' where m.leader = resign_maintenance.leader
$$;

comment on function queue_pg.resign_maintenance is 'Ends the lead of a process that stops.';
