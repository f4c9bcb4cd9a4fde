-- breaking: no
-- Limits of work in flight, of a queue or of a key that jobs carry; functions/limits.sql and limited.sql apply them.

create table queue_pg.limits (
  org text not null default 'default' constraint limits_org_length check (length(org) between 1 and 200),
  scope text not null constraint limits_scope_known check (scope in ('queue', 'key')),
  name text not null constraint limits_name_length check (length(name) between 1 and 255),
  max_running integer constraint limits_max_running_range check (max_running between 1 and 1000000),
  running integer not null default 0 constraint limits_running_range check (running >= 0),
  rate integer constraint limits_rate_range check (rate between 1 and 1000000),
  per text constraint limits_per_known check (per in ('second', 'minute', 'hour', 'day')),
  burst integer constraint limits_burst_range check (burst between 1 and 1000000),
  unit interval,
  full_at timestamptz not null default '-infinity',
  paused_until timestamptz,
  opens_at timestamptz not null default '-infinity',
  template text,
  primary key (org, scope, name),
  constraint limits_rate_whole check (
    (rate is null) = (per is null) and (rate is null) = (burst is null) and (rate is null) = (unit is null))
) with (
  -- Rewritten by every claim and finish that it counts: the new version stays on the page.
  fillfactor = 50
);
-- What will open: few, because most limits never close for a time.
create index limits_opening on queue_pg.limits (opens_at) where opens_at > '-infinity';

comment on table queue_pg.limits is
  'Limits of queues and of keys; set them with queue_pg.set_limit(). People read them in queue_pg.limits_now.';
comment on column queue_pg.limits.scope is 'queue: all jobs of a queue; key: all jobs with this limit_key, in whatever queue.';
comment on column queue_pg.limits.name is 'The queue or the key. A key that ends with * is a template for the keys that begin so.';
comment on column queue_pg.limits.max_running is 'Most attempts at once; null = any number.';
comment on column queue_pg.limits.running is 'Attempts that count now: those of jobs whose column counted names this limit.';
comment on column queue_pg.limits.rate is 'Units of cost that may start in each second, minute, hour or day; null = any number.';
comment on column queue_pg.limits.burst is 'Units that may start at once after a pause: the size of the bucket.';
comment on column queue_pg.limits.unit is 'How long the bucket takes to get one unit back.';
comment on column queue_pg.limits.full_at is 'When the bucket is full again; each start moves it on by its cost.';
comment on column queue_pg.limits.paused_until is 'No claims before this moment; infinity = until resumed; null = not paused.';
comment on column queue_pg.limits.opens_at is 'No claims before this moment, be it for a pause or for the rate.';
comment on column queue_pg.limits.template is 'The template that this limit was made from, at the first use of its key.';

alter table queue_pg.queues add column limited boolean not null default false;
comment on column queue_pg.queues.limited is 'Whether it has a row in limits: a claim that finds none need not look.';

alter table queue_pg.jobs add column counted smallint;
comment on column queue_pg.jobs.counted is 'Which limits count the attempt that runs: 1 its queue''s, 2 its key''s, 3 both; null = none.';
comment on column queue_pg.jobs.limit_key is 'Which limit of a key the job counts against; jobs of a queue share it by these keys.';
comment on column queue_pg.jobs.cost is 'Units that each attempt takes from the rate of its limits.';

-- Jobs with a key have an index of their own, in which a claim leaps from key to key: 100,000 jobs of a key that is
-- full are one leap. An ordinary job has no entry in it.
drop index queue_pg.jobs_claim;
create index jobs_claim on queue_pg.jobs (queue, org, priority desc, run_at, id)
  where state = 'queued' and limit_key is null;
create index jobs_keyed on queue_pg.jobs (queue, org, limit_key, priority desc, run_at, id)
  where state = 'queued' and limit_key is not null;

-- Made anew by functions/submit.sql, with more parameters.
do $do$
declare
  v_function regprocedure;
begin
  for v_function in select p.oid from pg_proc p where p.pronamespace = 'queue_pg'::regnamespace and p.proname = 'submit' loop
    execute format('drop function %s', v_function);
  end loop;
end
$do$;
