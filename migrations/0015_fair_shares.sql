-- breaking: no
-- Fair shares by weight and cost, turns for those who have waited long, and limit keys for what makes jobs.

alter table queue_pg.limits
  add column weight double precision constraint limits_weight_range check (weight between 0.001 and 1000),
  add column ageing interval constraint limits_ageing_range check (queue_pg.is_duration(ageing, '100 milliseconds', '365 days')),
  add column counts boolean not null generated always as (
    max_running is not null or rate is not null or paused_until is not null) stored,
  add constraint limits_ageing_scope check (ageing is null or scope = 'queue');
-- Mostly empty: whether weights have to be looked at at all.
create index limits_weighted on queue_pg.limits (org, name) where weight is not null;

comment on column queue_pg.limits.weight is 'Its share beside others, in units of cost; null = 1.';
comment on column queue_pg.limits.ageing is
  'Of a queue: from which wait on a job has a part in one turn of eight, whatever its priority; null = never.';
comment on column queue_pg.limits.counts is
  'Whether it limits anything: else claims neither lock it nor count what runs, and it has only a weight or an ageing.';
comment on column queue_pg.queues.limited is
  'Whether it has a row in limits, for a limit, a weight or its ageing: a claim that finds none need not look.';

alter table queue_pg.schedules
  add column limit_key queue_pg.limit_key,
  add column cost queue_pg.cost not null default 1;
comment on column queue_pg.schedules.limit_key is 'Of the jobs: which limit of a key they count against.';
comment on column queue_pg.schedules.cost is 'Of the jobs: units that each attempt takes from the rate of its limits.';

alter table queue_pg.job_templates
  add column limit_key queue_pg.limit_key,
  add column cost queue_pg.cost not null default 1;
comment on column queue_pg.job_templates.limit_key is
  'Of the jobs: which limit of a key they count against; with {{ variables.x }} in it, which is filled in.';
comment on column queue_pg.job_templates.cost is 'Of the jobs: units that each attempt takes from the rate of its limits.';

-- Made anew by functions/*.sql, with more parameters.
do $do$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid from pg_proc p
    where p.pronamespace = 'queue_pg'::regnamespace and p.proname in (
      'set_limit', 'keep_limit', 'lock_limit', 'take_from_lane', 'pick_limited', 'schedule', 'register_schedule', 'put_template')
  loop
    execute format('drop function %s', v_function);
  end loop;
end
$do$;
