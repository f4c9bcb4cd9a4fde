-- Payloads that take what a job's parents have made.
--
-- In the strings of a payload {{ path }} stands for a value: parents.<name>. and then output, error, state, kind or id,
-- and on into the document by .key and [index]. Nothing is computed: a template is looked up, never run. A string that is
-- one placeholder and nothing else becomes the JSON value itself; inside longer text stands its text. {{{{ is a literal {{.
-- Only jobs with parents have templates; what a parent has made is never read as one.

-- Cuts a string into the literals around its placeholders and the paths in them: one literal more than there are paths.
create or replace function queue_pg.template_pieces(template text, out literals text[], out paths text[])
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pieces text[] := string_to_array(template, '{{');
  -- In pieces until it ends: a text that grows by each of a million would be copied a million times.
  v_literal text[] := v_pieces[1:1];
  v_nr integer := 2;
  v_end integer;
begin
  literals := '{}';
  paths := '{}';
  while v_nr <= cardinality(v_pieces) loop
    if v_pieces[v_nr] = '' and v_nr < cardinality(v_pieces) then
      v_literal := array_append(v_literal, '{{' || v_pieces[v_nr + 1]);
      v_nr := v_nr + 2;
      continue;
    end if;
    v_end := strpos(v_pieces[v_nr], '}}');
    if v_end = 0 then
      perform queue_pg.raise_invalid('payload',
        format('has {{ without }} in "{{%s"; write {{{{ for a literal {{', left(v_pieces[v_nr], 60)));
    end if;
    literals := array_append(literals, array_to_string(v_literal, ''));
    paths := array_append(paths, btrim(left(v_pieces[v_nr], v_end - 1)));
    v_literal := array[substr(v_pieces[v_nr], v_end + 2)];
    v_nr := v_nr + 1;
  end loop;
  literals := array_append(literals, array_to_string(v_literal, ''));
end
$$;

-- Reads a path: which parent, and the steps into what is known of it.
create or replace function queue_pg.template_path(path text, out name text, out steps text[])
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(path,
    '^parents\.([A-Za-z0-9_-]{1,100})\.(output|error|state|kind|id)((?:\.[^].{}[:space:][]+|\[-?[0-9]{1,9}\])*)$');
begin
  if v_parts is null then
    perform queue_pg.raise_invalid('payload', format(
      '{{ %s }} is no path such as parents.<name>.output.text; write {{{{ for a literal {{', left(path, 100)));
  end if;
  name := v_parts[1];
  steps := array_prepend(v_parts[2], string_to_array(
    nullif(ltrim(replace(replace(v_parts[3], '[', '.'), ']', ''), '.'), ''), '.'));
end
$$;

-- The paths in all strings of a payload, each with how often it stands there.
create or replace function queue_pg.template_paths(payload jsonb) returns table (path text, times bigint)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p.path, count(*)
  from (
    select s.found #>> '{}' as text from jsonb_path_query(payload, 'strict $.** ? (@.type() == "string")') s (found)
  ) t
  cross join lateral unnest((queue_pg.template_pieces(t.text)).paths) as p (path)
  where strpos(t.text, '{{') > 0
  group by p.path
$$;

-- Refuses a payload with templates that could never be filled in. `names` has the names of the parents as keys.
create or replace function queue_pg.check_template(payload jsonb, names jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_most constant integer := 1000;
  v_unknown text;
begin
  if (select sum(t.times) from queue_pg.template_paths(payload) t) > v_most then
    perform queue_pg.raise_invalid('payload', format('has more than %s placeholders', v_most));
  end if;
  select t.path into v_unknown from queue_pg.template_paths(payload) t
  where not names ? (queue_pg.template_path(t.path)).name
  order by t.path limit 1;
  if found then
    perform queue_pg.raise_invalid('payload', format('{{ %s }} names none of its parents', v_unknown));
  end if;
end
$$;

-- Fills the values of paths into one value of a payload. Subtrees without a template are taken as they are.
create or replace function queue_pg.render_value(template jsonb, known jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pieces record;
begin
  if strpos(template::text, '{{') = 0 then
    return template;
  end if;
  case jsonb_typeof(template)
    when 'array' then
      return (
        select jsonb_agg(queue_pg.render_value(e.value, known) order by e.ordinality)
        from jsonb_array_elements(template) with ordinality e);
    when 'object' then
      return (select jsonb_object_agg(e.key, queue_pg.render_value(e.value, known)) from jsonb_each(template) e);
    else
      v_pieces := queue_pg.template_pieces(template #>> '{}');
      if v_pieces.literals = array['', ''] then
        return known -> v_pieces.paths[1];
      end if;
      return (
        select to_jsonb(string_agg(p.literal || coalesce(known ->> p.path, case when p.path is null then '' else 'null' end),
          '' order by p.ordinality))
        from unnest(v_pieces.literals, v_pieces.paths) with ordinality as p (literal, path, ordinality));
  end case;
end
$$;

-- The payload of a job with its templates filled in from its parents. Raises QP005 for a path that leads nowhere and for
-- a result over the limit of payloads, before it is made.
create or replace function queue_pg.render_payload(child_id uuid, payload jsonb) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_most constant bigint := 33554432;
  v_bytes bigint := octet_length(payload::text);
  v_row record;
  v_step record;
  v_parent jsonb;
  v_value jsonb;
  v_paths text[] := '{}';
  v_values text[] := '{}';
begin
  for v_row in select t.path, t.times from queue_pg.template_paths(payload) t order by t.path loop
    v_step := queue_pg.template_path(v_row.path);
    select jsonb_build_object('id', a.id, 'kind', a.kind, 'state', a.state, 'error', a.error)
      || case when a.state = 'completed' then jsonb_build_object('output', coalesce(a.result, 'null')) else '{}' end
    into v_parent
    from queue_pg.dependencies d cross join lateral queue_pg.job(d.parent_id) a
    where d.child_id = render_payload.child_id and d.name = v_step.name;
    v_value := v_parent #> v_step.steps;
    if v_value is null then
      perform queue_pg.raise_invalid('payload', format('{{ %s }}: %s', v_row.path, case
        when v_parent is null then format('parent %s is forgotten', v_step.name)
        when not v_parent ? v_step.steps[1] then format('parent %s is %s and has no output', v_step.name, v_parent ->> 'state')
        else format('parent %s has nothing there', v_step.name) end));
    end if;
    v_bytes := v_bytes + v_row.times * octet_length(v_value::text);
    if v_bytes > v_most then
      perform queue_pg.raise_invalid('payload', format('is over %s bytes with what stands for {{ %s }}', v_most, v_row.path));
    end if;
    v_paths := array_append(v_paths, v_row.path);
    v_values := array_append(v_values, v_value::text);
  end loop;
  return queue_pg.render_value(payload, coalesce(
    (select jsonb_object_agg(k.path, k.value::jsonb) from unnest(v_paths, v_values) as k (path, value)), '{}'));
end
$$;
