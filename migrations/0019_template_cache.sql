-- breaking: no
-- Job templates say whether their jobs share the results of identical work.

alter table queue_pg.job_templates
  add column cache boolean,
  add column cache_for interval constraint job_templates_cache_for_range check (queue_pg.is_duration(cache_for, '0', '36500 days')),
  add column cache_version text constraint job_templates_cache_version_length check (length(cache_version) between 1 and 255);

comment on column queue_pg.job_templates.cache is
  'Whether its jobs may be answered by identical work, or share it; null: if cache_for or cache_version is there.';
comment on column queue_pg.job_templates.cache_for is 'How old an answer may be; null: however old.';
comment on column queue_pg.job_templates.cache_version is 'What is compared beside kind and payload.';

-- Made anew by functions/job_templates.sql with more parameters, whatever parameters it had.
do $do$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
    where p.proname = 'put_template' and p.pronamespace = 'queue_pg'::regnamespace
  loop
    execute format('drop function %s', v_function);
  end loop;
end
$do$;
