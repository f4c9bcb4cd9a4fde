-- Cron expressions and time zones: which moments they name. Nothing here reads a table.
--
-- The rules of Debian's cron, which people know, made exact. An expression names local times. Where the local clock jumps,
-- it depends on whether the expression names times of day (neither its minute nor its hour begins with *):
--   it does      a time that the clock skips fires once, at the moment of the jump; a time that comes twice fires the
--                first time only
--   it does not  the local clock as it runs: what is skipped does not fire, what comes twice fires twice
-- The time zones are those of the Postgres server, one set for all who schedule.

-- One field as the sorted values it names. Beside numbers and names: * a-b a,b */n a-b/n a/n (from a on). Of days, l is
-- the last of the month (32 here); of weekdays, d#n is the n-th of the month (10 * n + d) and dl the last (60 + d).
create or replace function queue_pg.cron_field(
  field text, expression text, lowest integer, highest integer, names text[] default '{}') returns integer[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_item text;
  v_found text[];
  v_first integer;
  v_last integer;
  v_step integer;
  v_values integer[] := '{}';
begin
  -- What most fields are.
  if expression = '*' then
    return array(select generate_series(lowest, case when field = 'weekday' then 6 else highest end));
  elsif expression ~ '^[0-9]{1,2}$' and expression::integer between lowest and highest then
    return array[case when field = 'weekday' then expression::integer % 7 else expression::integer end];
  end if;
  foreach v_item in array string_to_array(expression, ',') loop
    if field = 'day' and v_item = 'l' then
      v_values := v_values || 32;
      continue;
    end if;
    v_found := case when field = 'weekday' then
      regexp_match(v_item, '^([0-7]|[a-z]{3})(?:#([1-5])|(l))$') end;
    if v_found is not null then
      v_first := coalesce(array_position(names, v_found[1]) - 1, case when v_found[1] ~ '^[0-7]$' then v_found[1]::integer end);
      if v_first is not null then
        v_values := v_values || (coalesce(v_found[2]::integer, 6) * 10 + v_first % 7);
        continue;
      end if;
    end if;
    v_found := regexp_match(v_item, '^(?:(\*)|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?$');
    v_step := coalesce(v_found[4]::integer, 1);
    if v_found[1] = '*' then
      v_first := lowest;
      v_last := highest;
    else
      v_first := case when v_found[2] ~ '^[0-9]' then v_found[2]::integer else array_position(names, v_found[2]) + lowest - 1 end;
      v_last := case
        when v_found[3] is null and v_found[4] is null then v_first
        when v_found[3] is null then highest
        when v_found[3] ~ '^[0-9]' then v_found[3]::integer
        else array_position(names, v_found[3]) + lowest - 1 end;
      -- fri-sun: Sunday is 0 and 7.
      if field = 'weekday' and v_last = 0 and v_first > 0 then
        v_last := 7;
      end if;
    end if;
    if coalesce(v_first < lowest or v_last > highest or v_first > v_last or v_step < 1, true) then
      perform queue_pg.raise_invalid('cron', format('its %s %s must be of numbers from %s to %s%s', field, quote_literal(left(v_item, 40)),
        lowest, highest, case when cardinality(names) > 0 then format(' or names (%s to %s)', names[1], names[cardinality(names)]) else '' end));
    end if;
    v_values := v_values || array(
      select case when field = 'weekday' then n % 7 else n end from generate_series(v_first, v_last, v_step) n);
  end loop;
  if cardinality(v_values) = 0 then
    perform queue_pg.raise_invalid('cron', format('its %s is empty', field));
  end if;
  return array(select distinct v from unnest(v_values) v order by v);
end
$$;

comment on function queue_pg.cron_field is 'The values that one field of a cron expression names.';

-- both_days: a day has to match day and weekday, because one of them begins with *; else either.
-- times_of_day: the expression names times of day, see above.
create or replace function queue_pg.cron_fields(
  cron text, out minutes integer[], out hours integer[], out days integer[], out months integer[], out weekdays integer[],
  out both_days boolean, out times_of_day boolean)
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text := lower(btrim(cron, E' \t'));
  v_parts text[];
begin
  v_text := case v_text
    when '@yearly' then '0 0 1 1 *' when '@annually' then '0 0 1 1 *' when '@monthly' then '0 0 1 * *'
    when '@weekly' then '0 0 * * 0' when '@daily' then '0 0 * * *' when '@midnight' then '0 0 * * *'
    when '@hourly' then '0 * * * *' else v_text end;
  v_parts := regexp_split_to_array(v_text, '[ \t]+');
  if length(v_text) > 300 or cardinality(v_parts) <> 5 then
    perform queue_pg.raise_invalid('cron',
      'must have five fields (minute hour day month weekday), or be one of @hourly, @daily, @weekly, @monthly, @yearly');
  end if;
  minutes := queue_pg.cron_field('minute', v_parts[1], 0, 59);
  hours := queue_pg.cron_field('hour', v_parts[2], 0, 23);
  days := queue_pg.cron_field('day', v_parts[3], 1, 31);
  months := queue_pg.cron_field('month', v_parts[4], 1, 12,
    '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
  weekdays := queue_pg.cron_field('weekday', v_parts[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}');
  both_days := left(v_parts[3], 1) = '*' or left(v_parts[5], 1) = '*';
  times_of_day := left(v_parts[1], 1) <> '*' and left(v_parts[2], 1) <> '*';
end
$$;

comment on function queue_pg.cron_fields is 'A cron expression taken apart; raises QP005 naming what is wrong with it.';

-- The first local time from `start` on that the fields name, on a clock that never jumps; null: none in 50 years.
create or replace function queue_pg.next_cron_time(
  start timestamp, minutes integer[], hours integer[], days integer[], months integer[], weekdays integer[],
  both_days boolean) returns timestamp
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_day date := start::date;
  v_end date := v_day + 18300;
  -- Minutes of the day; a begun minute is over.
  v_from integer := ceil(extract(epoch from start::time) / 60);
  v_number integer;
  v_weekday integer;
  v_day_fits boolean;
  v_weekday_fits boolean;
  v_fits boolean;
  v_hour integer;
  v_minute integer;
begin
  while v_day < v_end loop
    if not extract(month from v_day)::integer = any (months) then
      v_day := date_trunc('month', v_day::timestamp)::date + interval '1 month';
      v_from := 0;
      continue;
    end if;
    v_number := extract(day from v_day);
    v_weekday := extract(dow from v_day);
    v_day_fits := v_number = any (days) or (32 = any (days) and extract(day from v_day + 1) = 1);
    v_weekday_fits := v_weekday = any (weekdays) or (v_number + 6) / 7 * 10 + v_weekday = any (weekdays)
      or (60 + v_weekday = any (weekdays) and extract(day from v_day + 7) <= 7);
    v_fits := case when both_days then v_day_fits and v_weekday_fits else v_day_fits or v_weekday_fits end;
    if v_fits then
      foreach v_hour in array hours loop
        continue when v_hour * 60 + 59 < v_from;
        foreach v_minute in array minutes loop
          if v_hour * 60 + v_minute >= v_from then
            return v_day + make_interval(mins => v_hour * 60 + v_minute);
          end if;
        end loop;
      end loop;
    end if;
    v_day := v_day + 1;
    v_from := 0;
  end loop;
  return null;
end
$$;

comment on function queue_pg.next_cron_time is 'The first local time from a start on that a cron expression names.';

create or replace function queue_pg.utc_offset(time_zone text, moment timestamptz) returns interval
language sql stable parallel safe
return (moment at time zone time_zone) - (moment at time zone 'UTC');

comment on function queue_pg.utc_offset is 'How far the local clock is ahead of UTC at a moment.';

-- The first jump of the local clock after `start` and up to `until`; null: none. Looks once in a week: no zone changes
-- its clock and takes it back sooner. Hours and not days, which would be those of the session's own zone.
create or replace function queue_pg.next_clock_change(time_zone text, start timestamptz, until timestamptz)
returns timestamptz
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_offset interval := queue_pg.utc_offset(time_zone, start);
  v_before timestamptz := start;
  v_after timestamptz;
  v_low bigint;
  v_high bigint;
  v_middle bigint;
begin
  loop
    if v_before >= until then
      return null;
    end if;
    v_after := least(v_before + interval '168 hours', until);
    exit when queue_pg.utc_offset(time_zone, v_after) <> v_offset;
    v_before := v_after;
  end loop;
  v_low := floor(extract(epoch from v_before));
  v_high := ceil(extract(epoch from v_after));
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    if queue_pg.utc_offset(time_zone, to_timestamp(v_middle)) = v_offset then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return to_timestamp(v_high);
end
$$;

comment on function queue_pg.next_clock_change is 'When a zone''s clock is changed next, up to a moment.';

-- From one change of the local clock to the next, local time is a fixed length apart from UTC, and the expression can be
-- followed as on a clock that never jumps.
create or replace function queue_pg.next_cron_fire(cron text, time_zone text, after timestamptz) returns timestamptz
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fields record;
  v_start timestamptz := after;
  v_offset interval := queue_pg.utc_offset(time_zone, after);
  v_before interval := queue_pg.utc_offset(time_zone, after - interval '24 hours');
  v_from timestamp := date_trunc('minute', (after at time zone 'UTC') + v_offset) + interval '1 minute';
  v_local timestamp;
  v_fire timestamptz;
  v_change timestamptz;
begin
  select f.* into v_fields from queue_pg.cron_fields(cron) f;
  if v_fields.times_of_day and v_before > v_offset then
    -- The clock was put back not long ago: what it shows for the second time has fired.
    v_change := queue_pg.next_clock_change(time_zone, after - interval '24 hours', after);
    v_from := greatest(v_from, (v_change at time zone 'UTC') + v_before);
  end if;
  loop
    v_local := queue_pg.next_cron_time(v_from, v_fields.minutes, v_fields.hours, v_fields.days, v_fields.months,
      v_fields.weekdays, v_fields.both_days);
    if v_local is null then
      return null;
    end if;
    v_fire := (v_local - v_offset) at time zone 'UTC';
    v_change := queue_pg.next_clock_change(time_zone, v_start, v_fire);
    if v_change is null then
      return v_fire;
    end if;
    v_before := v_offset;
    v_offset := queue_pg.utc_offset(time_zone, v_change);
    if v_fields.times_of_day and v_local < (v_change at time zone 'UTC') + v_offset then
      return v_change;
    end if;
    v_from := (v_change at time zone 'UTC')
      + case when v_fields.times_of_day then greatest(v_before, v_offset) else v_offset end;
    v_start := v_change;
  end loop;
end
$$;

comment on function queue_pg.next_cron_fire is 'The first moment after another that a cron expression names in a time zone.';
