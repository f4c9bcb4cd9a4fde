-- breaking: no
-- Webhooks as callbacks of batches, and a callback as soon as the first job of a batch has failed.

alter table queue_pg.batches
  add column on_first_failed jsonb constraint batches_on_first_failed_size check (pg_column_size(on_first_failed) <= 65536),
  add column first_failed_at timestamptz,
  add column first_failed_id uuid;

comment on column queue_pg.batches.on_first_failed is
  'Job to submit as soon as one of its jobs has failed for good, once a run.';
comment on column queue_pg.batches.first_failed_at is 'When that was noticed in this run.';
comment on column queue_pg.batches.first_failed_id is 'The job that was submitted then.';

-- Made anew by functions/batches.sql with one more parameter, whatever parameters it had.
do $do$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
    where p.proname = 'create_batch' and p.pronamespace = 'queue_pg'::regnamespace
  loop
    execute format('drop function %s', v_function);
  end loop;
end
$do$;
