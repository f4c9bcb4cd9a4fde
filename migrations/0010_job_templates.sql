-- breaking: no
-- Job templates: what a job is made from when it is submitted by name.

create table queue_pg.job_templates (
  org text not null default 'default' constraint job_templates_org_length check (length(org) between 1 and 200),
  name text not null constraint job_templates_name_letters check (name ~ '^[A-Za-z0-9_.-]{1,100}$'),
  version integer not null constraint job_templates_version_range check (version >= 1),
  kind queue_pg.kind not null,
  queue queue_pg.queue not null default 'default',
  priority smallint not null default 0,
  max_attempts queue_pg.max_attempts,
  timeout queue_pg.timeout,
  payload jsonb not null default '{}' constraint job_templates_payload_size check (pg_column_size(payload) <= 1048576),
  variables jsonb not null default '{}' constraint job_templates_variables_object check (jsonb_typeof(variables) = 'object'),
  description text constraint job_templates_description_length check (length(description) <= 2000),
  created_at timestamptz not null default queue_pg.now(),
  primary key (org, name, version)
);

comment on table queue_pg.job_templates is
  'Named defaults of jobs, written by queue_pg.put_template(). A version never changes; a change is the next version.';
comment on column queue_pg.job_templates.payload is
  'With {{ variables.x }} in its strings, which submit_template() fills in; {{{{ is a literal {{.';
comment on column queue_pg.job_templates.variables is
  'By name: {"type", "default", "enum", "minimum", "maximum", "max_length", "description"}. Without a default it has to be given.';
comment on column queue_pg.job_templates.max_attempts is 'Null: the kind''s, else settings.max_attempts.';
comment on column queue_pg.job_templates.timeout is 'Null: the kind''s, else settings.timeout.';
