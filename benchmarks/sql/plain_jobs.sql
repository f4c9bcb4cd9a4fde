do $do$
declare
  v_parameters text;
begin
  create table plain_jobs (like queue_pg.jobs including all);
  -- They are not among "all": a fillfactor makes a table larger.
  select string_agg(p, ', ') into v_parameters
  from pg_class c, unnest(c.reloptions) p where c.oid = 'queue_pg.jobs'::regclass;
  execute 'alter table plain_jobs set (' || v_parameters || ')';
end
$do$
