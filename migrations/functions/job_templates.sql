-- Jobs submitted by the name of a template. Placeholders are those of templates.sql, with variables instead of parents:
-- {{ variables.topic }}, {{ variables.user.name }}, {{ variables.files[0] }}. They are looked up, never run, and what a
-- variable holds is never read as a template.

create or replace function queue_pg.raise_template_not_found(name text, version integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QP001',
    message = case when version is null then format('no template %s', name)
      else format('template %s has no version %s', name, version) end,
    detail = jsonb_build_object('template', name, 'version', version)::text,
    hint = 'See the names: select name, version from queue_pg.job_templates';
end
$$;

-- A version that jobs were made from stays what it was.
create or replace function queue_pg.keep_template() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform queue_pg.raise_invalid('version', 'never changes; queue_pg.put_template() makes the next one');
  return null;
end
$$;

create or replace trigger job_templates_immutable before update on queue_pg.job_templates
  for each row execute function queue_pg.keep_template();

-- Why a value is none for a variable; null: it is one.
create or replace function queue_pg.variable_fault(spec jsonb, value jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when spec ->> 'type' not in ('any', 'integer') and spec ->> 'type' <> jsonb_typeof(value)
      or spec ->> 'type' = 'integer' and jsonb_typeof(value) <> 'number'
      then format('must be of type %s, not %s', spec ->> 'type', jsonb_typeof(value))
    when spec ->> 'type' = 'integer' and mod(value::text::numeric, 1) <> 0 then 'must be an integer'
    when spec ? 'enum' and not exists (select from jsonb_array_elements(spec -> 'enum') e where e.value = variable_fault.value)
      then format('must be one of %s', left(spec ->> 'enum', 300))
    when jsonb_typeof(value) = 'number' and value < spec -> 'minimum' then format('must be at least %s', spec ->> 'minimum')
    when jsonb_typeof(value) = 'number' and value > spec -> 'maximum' then format('must be at most %s', spec ->> 'maximum')
    when jsonb_typeof(value) = 'string' and length(value #>> '{}') > (spec ->> 'max_length')::integer
      then format('must have at most %s characters', spec ->> 'max_length')
  end
$$;

-- Reads a path: which variable, and the steps into it.
create or replace function queue_pg.variable_path(path text, out name text, out steps text[])
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(path,
    '^variables\.([A-Za-z0-9_-]{1,100})((?:\.[^].{}[:space:][]+|\[-?[0-9]{1,9}\])*)$');
begin
  if v_parts is null then
    perform queue_pg.raise_invalid('payload', format(
      '{{ %s }} is no path such as variables.<name>; write {{{{ for a literal {{', left(path, 100)));
  end if;
  name := v_parts[1];
  steps := coalesce(string_to_array(
    nullif(ltrim(replace(replace(v_parts[2], '[', '.'), ']', ''), '.'), ''), '.'), '{}');
end
$$;

-- Checks what variables a template has, and returns them written out: "string" is short for {"type": "string"}.
create or replace function queue_pg.checked_variables(variables jsonb) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_most constant integer := 100;
  v_found jsonb := '{}';
  v_row record;
  v_spec jsonb;
  v_field text;
  v_unknown text;
begin
  if jsonb_typeof(variables) is distinct from 'object' then
    perform queue_pg.raise_invalid('variables', 'must be an object');
  elsif (select count(*) from jsonb_object_keys(variables)) > v_most then
    perform queue_pg.raise_invalid('variables', format('must be at most %s', v_most));
  end if;
  for v_row in select e.key, e.value from jsonb_each(variables) e order by e.key loop
    v_field := 'variables.' || left(v_row.key, 100);
    v_spec := case jsonb_typeof(v_row.value) when 'string' then jsonb_build_object('type', v_row.value) else v_row.value end;
    if v_row.key !~ '^[A-Za-z0-9_-]{1,100}$' then
      perform queue_pg.raise_invalid(v_field, 'must be named by 1 to 100 letters, digits, _ and -');
    elsif jsonb_typeof(v_spec) <> 'object' or coalesce(v_spec ->> 'type', '') not in (
      'string', 'integer', 'number', 'boolean', 'array', 'object', 'any') then
      perform queue_pg.raise_invalid(v_field, 'needs a type: string, integer, number, boolean, array, object or any');
    end if;
    select k into v_unknown from jsonb_object_keys(v_spec) k
    where k not in ('type', 'default', 'enum', 'minimum', 'maximum', 'max_length', 'description') limit 1;
    if found then
      perform queue_pg.raise_invalid(v_field || '.' || left(v_unknown, 100), 'is no field of a variable');
    elsif jsonb_typeof(v_spec -> 'enum') <> 'array' then
      perform queue_pg.raise_invalid(v_field || '.enum', 'must be an array');
    elsif jsonb_typeof(v_spec -> 'minimum') <> 'number' or jsonb_typeof(v_spec -> 'maximum') <> 'number' then
      perform queue_pg.raise_invalid(v_field, 'needs numbers as minimum and maximum');
    elsif jsonb_typeof(v_spec -> 'max_length') <> 'number' or v_spec ->> 'max_length' !~ '^[0-9]{1,9}$' then
      perform queue_pg.raise_invalid(v_field || '.max_length', 'must be a number of characters');
    elsif jsonb_typeof(v_spec -> 'description') <> 'string' then
      perform queue_pg.raise_invalid(v_field || '.description', 'must be a text');
    end if;
    if v_spec ? 'default' and queue_pg.variable_fault(v_spec, v_spec -> 'default') is not null then
      perform queue_pg.raise_invalid(v_field || '.default', queue_pg.variable_fault(v_spec, v_spec -> 'default'));
    end if;
    v_found := v_found || jsonb_build_object(v_row.key, v_spec);
  end loop;
  return v_found;
end
$$;

-- Stores a template and returns its version: the next one, or the newest if that is the same already. Raises QP005.
create or replace function queue_pg.put_template(
  name text, kind text, payload jsonb default '{}', variables jsonb default '{}', queue text default 'default',
  priority integer default 0, max_attempts integer default null, timeout interval default null,
  description text default null, org text default 'default', limit_key text default null, cost integer default 1,
  cache boolean default null, cache_for interval default null, cache_version text default null)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_org text := coalesce(put_template.org, 'default');
  v_variables jsonb := queue_pg.checked_variables(coalesce(nullif(put_template.variables, 'null'), '{}'));
  v_payload jsonb := coalesce(nullif(put_template.payload, 'null'), '{}');
  v_timeout interval := queue_pg.plain_interval(put_template.timeout);
  v_cache_for interval := queue_pg.plain_interval(put_template.cache_for);
  v_newest queue_pg.job_templates;
  v_unknown text;
begin
  if put_template.name is null or put_template.name !~ '^[A-Za-z0-9_.-]{1,100}$' then
    perform queue_pg.raise_invalid('name', 'must have 1 to 100 letters, digits, _, . and -');
  elsif nullif(put_template.kind, '') is null then
    perform queue_pg.raise_invalid('kind', 'must be given');
  elsif length(put_template.description) > 2000 then
    perform queue_pg.raise_invalid('description', 'must have at most 2,000 characters');
  elsif put_template.priority not between -32768 and 32767 then
    perform queue_pg.raise_invalid('priority', 'must be from -32,768 to 32,767');
  elsif pg_column_size(v_payload) > 1048576 or pg_column_size(v_variables) > 262144 then
    perform queue_pg.raise_invalid(case when pg_column_size(v_payload) > 1048576 then 'payload' else 'variables' end,
      'is larger than a template may be: 1 MiB of payload, 256 KiB of variables');
  elsif (select sum(p.times) from queue_pg.template_paths(v_payload) p) > 1000 then
    perform queue_pg.raise_invalid('payload', 'has more than 1000 placeholders');
  elsif length(put_template.limit_key) not between 1 and 255 then
    perform queue_pg.raise_invalid('limit_key', 'must have 1 to 255 characters');
  elsif put_template.cost not between 0 and 1000000 then
    perform queue_pg.raise_invalid('cost', 'must be from 0 to 1,000,000');
  elsif not queue_pg.is_duration(v_cache_for, '0', '36500 days') then
    perform queue_pg.raise_invalid('cache_for', 'must be from 0 to 100 years');
  elsif length(put_template.cache_version) not between 1 and 255 then
    perform queue_pg.raise_invalid('cache_version', 'must have 1 to 255 characters');
  end if;
  select p.path into v_unknown from queue_pg.template_paths(v_payload) p
  where not v_variables ? (queue_pg.variable_path(p.path)).name order by p.path limit 1;
  if found then
    perform queue_pg.raise_invalid('payload', format('{{ %s }} names none of the variables', v_unknown));
  end if;
  begin
    select p.path into v_unknown from queue_pg.template_paths(to_jsonb(put_template.limit_key)) p
    where not v_variables ? (queue_pg.variable_path(p.path)).name order by p.path limit 1;
  exception when sqlstate 'QP005' then
    perform queue_pg.raise_invalid('limit_key', regexp_replace(sqlerrm, '^payload: ', ''));
  end;
  if v_unknown is not null then
    perform queue_pg.raise_invalid('limit_key', format('{{ %s }} names none of the variables', v_unknown));
  end if;

  perform pg_advisory_xact_lock(hashtextextended(v_org || E'\x1f' || put_template.name, 7310579610401947748));
  select t.* into v_newest from queue_pg.job_templates t
  where t.org = v_org and t.name = put_template.name order by t.version desc limit 1;
  if (v_newest.kind, v_newest.payload, v_newest.variables, v_newest.queue, v_newest.priority, v_newest.max_attempts,
      v_newest.timeout, v_newest.description, v_newest.limit_key, v_newest.cost, v_newest.cache, v_newest.cache_for,
      v_newest.cache_version) is not distinct from
    (put_template.kind::queue_pg.kind, v_payload, v_variables, coalesce(put_template.queue, 'default')::queue_pg.queue,
      coalesce(put_template.priority, 0)::smallint, put_template.max_attempts::queue_pg.max_attempts,
      v_timeout::queue_pg.timeout, put_template.description, put_template.limit_key::queue_pg.limit_key,
      coalesce(put_template.cost, 1)::queue_pg.cost, put_template.cache, v_cache_for, put_template.cache_version) then
    return v_newest.version;
  end if;
  insert into queue_pg.job_templates (
    org, name, version, kind, queue, priority, max_attempts, timeout, payload, variables, description, limit_key, cost, cache,
    cache_for, cache_version)
  values (v_org, put_template.name, coalesce(v_newest.version, 0) + 1, put_template.kind,
    coalesce(put_template.queue, 'default'), coalesce(put_template.priority, 0), put_template.max_attempts, v_timeout,
    v_payload, v_variables, put_template.description, put_template.limit_key, coalesce(put_template.cost, 1),
    put_template.cache, v_cache_for, put_template.cache_version);
  return coalesce(v_newest.version, 0) + 1;
end
$$;

comment on function queue_pg.put_template is
  'Stores a job template and returns its version; jobs are made from it by queue_pg.submit_template(name, variables).';

-- The job that a template makes, as submit_many() takes it. `options` are fields of the job beside kind and payload, which
-- win over the template's. Raises QP001 for an unknown template and QP005 naming the variable or option.
create or replace function queue_pg.template_job(
  name text, variables jsonb, version integer, options jsonb, org text) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_most constant bigint := 33554432;
  v_template queue_pg.job_templates;
  v_given jsonb := coalesce(nullif(template_job.variables, 'null'), '{}');
  v_options jsonb := coalesce(nullif(template_job.options, 'null'), '{}');
  v_values jsonb;
  v_known jsonb := '{}';
  v_row record;
  v_path record;
  v_value jsonb;
  v_bytes bigint;
  v_key text;
begin
  select t.* into v_template from queue_pg.job_templates t
  where t.org = template_job.org and t.name = template_job.name
    and (template_job.version is null or t.version = template_job.version)
  order by t.version desc limit 1;
  if not found then
    perform queue_pg.raise_template_not_found(template_job.name, template_job.version);
  end if;
  if jsonb_typeof(v_given) <> 'object' then
    perform queue_pg.raise_invalid('variables', 'must be an object');
  elsif jsonb_typeof(v_options) <> 'object' then
    perform queue_pg.raise_invalid('options', 'must be an object');
  end if;
  select k into v_row from jsonb_object_keys(v_options) k
  where k not in ('queue', 'priority', 'run_at', 'delay_seconds', 'max_attempts', 'timeout_seconds', 'expires_at',
    'unique_key', 'tags', 'metadata', 'traceparent', 'batch_id', 'limit_key', 'cost', 'cache', 'cache_for_seconds',
    'cache_version') limit 1;
  if found then
    perform queue_pg.raise_invalid('options.' || left(v_row.k, 100), 'is no option of a job');
  elsif jsonb_typeof(v_options -> 'metadata') not in ('object', 'null') then
    perform queue_pg.raise_invalid('options.metadata', 'must be an object');
  end if;
  select k into v_row from jsonb_object_keys(v_given) k where not v_template.variables ? k order by k limit 1;
  if found then
    perform queue_pg.raise_invalid('variables.' || left(v_row.k, 100), format(
      'is no variable of template %s version %s; it has %s', v_template.name, v_template.version, coalesce(
        (select string_agg(k, ', ' order by k) from jsonb_object_keys(v_template.variables) k), 'none')));
  end if;
  v_values := (
    select coalesce(jsonb_object_agg(s.key, s.value -> 'default'), '{}')
    from jsonb_each(v_template.variables) s where s.value ? 'default')
    -- As everywhere in a submission, null means the default; only a variable of any type can be null.
    || (select coalesce(jsonb_object_agg(g.key, g.value), '{}') from jsonb_each(v_given) g
      where jsonb_typeof(g.value) <> 'null' or v_template.variables -> g.key ->> 'type' = 'any');
  select min(k) as first, string_agg(k, ', ' order by k) as names into v_row
  from jsonb_object_keys(v_template.variables) k where not v_values ? k;
  if v_row.first is not null then
    perform queue_pg.raise_invalid('variables.' || v_row.first, format(
      'must be given%s', case when v_row.names <> v_row.first then format(' (as all of %s)', v_row.names) else '' end));
  end if;
  select v.key, queue_pg.variable_fault(v_template.variables -> v.key, v.value) as fault into v_row
  from jsonb_each(v_values) v
  where queue_pg.variable_fault(v_template.variables -> v.key, v.value) is not null order by v.key limit 1;
  if found then
    perform queue_pg.raise_invalid('variables.' || v_row.key, v_row.fault);
  end if;

  v_bytes := octet_length(v_template.payload::text);
  if v_options ->> 'limit_key' is not null then
    v_template.limit_key := v_options ->> 'limit_key';
    v_key := v_template.limit_key;
  end if;
  for v_row in
    select p.path, p.times from queue_pg.template_paths(
      case when v_key is null and v_template.limit_key is not null
        then jsonb_build_array(v_template.payload, v_template.limit_key::text) else v_template.payload end) p
    order by p.path
  loop
    v_path := queue_pg.variable_path(v_row.path);
    v_value := (v_values -> v_path.name) #> v_path.steps;
    if v_value is null then
      perform queue_pg.raise_invalid('variables.' || v_path.name, format('has nothing at {{ %s }}', v_row.path));
    end if;
    v_bytes := v_bytes + v_row.times * octet_length(v_value::text);
    if v_bytes > v_most then
      perform queue_pg.raise_invalid('variables.' || v_path.name, format('makes a payload of over %s bytes', v_most));
    end if;
    v_known := v_known || jsonb_build_object(v_row.path, v_value);
  end loop;
  if v_options ->> 'cache_for_seconds' is not null or v_options ->> 'cache_version' is not null then
    -- Who gives one of them asks, unless it says itself that it does not.
    v_template.cache := true;
  end if;
  v_key := coalesce(v_key, queue_pg.render_value(to_jsonb(v_template.limit_key::text), v_known) #>> '{}');
  if length(v_key) not between 1 and 255 then
    perform queue_pg.raise_invalid('limit_key', 'must have 1 to 255 characters when it is filled in');
  end if;
  return jsonb_build_object(
    'kind', v_template.kind::text, 'queue', v_template.queue::text, 'priority', v_template.priority,
    'max_attempts', v_template.max_attempts::integer, 'timeout_seconds', extract(epoch from v_template.timeout),
    'limit_key', v_key, 'cost', v_template.cost::integer, 'cache', v_template.cache,
    'cache_for_seconds', extract(epoch from v_template.cache_for), 'cache_version', v_template.cache_version)
    || jsonb_strip_nulls(v_options)
    || jsonb_build_object(
      'org', template_job.org, 'payload', queue_pg.render_value(v_template.payload, v_known),
      'metadata', coalesce(nullif(v_options -> 'metadata', 'null'), '{}') || jsonb_build_object(
        'template', jsonb_build_object('name', v_template.name, 'version', v_template.version)));
end
$$;

-- Submits a job made from a template, of its newest version unless told otherwise, and returns its id; with a unique key
-- that already names the same work, the id of that job.
create or replace function queue_pg.submit_template(
  name text, variables jsonb default '{}', version integer default null, options jsonb default '{}',
  org text default 'default') returns uuid
language sql
set search_path = pg_catalog, pg_temp
as $$
  select s.id from queue_pg.submit_many(jsonb_build_array(queue_pg.template_job(
    submit_template.name, submit_template.variables, submit_template.version, submit_template.options,
    coalesce(submit_template.org, 'default')))) s
$$;

comment on function queue_pg.submit_template is
  'Submits a job by the name of a template: select queue_pg.submit_template(''summary'', ''{"text": "..."}'').';
