-- Submitting jobs that wait for others.

-- Refuses a graph in which jobs wait for each other in a circle, and names it. Edges go from `children` to `parents`, both
-- positions in `keys`. Every job and edge is looked at once: those are taken away for which nothing is left to wait for,
-- and what remains at the end is in a circle or behind one.
create or replace function queue_pg.refuse_cycle(keys text[], children integer[], parents integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[] := keys;
  v_children integer[] := children;
  v_parents integer[] := parents;
  -- The edges of each parent as a linked list.
  v_first integer[] := array_fill(0, array[cardinality(keys)]);
  v_next integer[] := array_fill(0, array[cardinality(children)]);
  v_waits integer[] := array_fill(0, array[cardinality(keys)]);
  v_free integer[] := '{}';
  v_top integer := 0;
  v_node integer;
  v_edge integer;
  v_circle text := '';
  v_shown integer := 0;
begin
  for v_edge in 1..cardinality(v_children) loop
    v_next[v_edge] := v_first[v_parents[v_edge]];
    v_first[v_parents[v_edge]] := v_edge;
    v_waits[v_children[v_edge]] := v_waits[v_children[v_edge]] + 1;
  end loop;
  for v_node in 1..cardinality(v_keys) loop
    if v_waits[v_node] = 0 then
      v_top := v_top + 1;
      v_free[v_top] := v_node;
    end if;
  end loop;
  while v_top > 0 loop
    v_node := v_free[v_top];
    v_top := v_top - 1;
    v_edge := v_first[v_node];
    while v_edge > 0 loop
      v_waits[v_children[v_edge]] := v_waits[v_children[v_edge]] - 1;
      if v_waits[v_children[v_edge]] = 0 then
        v_top := v_top + 1;
        v_free[v_top] := v_children[v_edge];
      end if;
      v_edge := v_next[v_edge];
    end loop;
  end loop;

  -- From each that remains to a parent that remains; walking on, one comes round.
  v_node := null;
  v_first := array_fill(0, array[cardinality(v_keys)]);
  for v_edge in 1..cardinality(v_children) loop
    if v_waits[v_children[v_edge]] > 0 and v_waits[v_parents[v_edge]] > 0 then
      v_first[v_children[v_edge]] := v_parents[v_edge];
      v_node := v_parents[v_edge];
    end if;
  end loop;
  if v_node is null then
    return;
  end if;
  v_waits := array_fill(0, array[cardinality(v_keys)]);
  while v_waits[v_node] = 0 loop
    v_waits[v_node] := 1;
    v_node := v_first[v_node];
  end loop;
  loop
    v_shown := v_shown + 1;
    if v_shown <= 20 then
      v_circle := v_circle || v_keys[v_node] || ' -> ';
    elsif v_shown = 21 then
      v_circle := v_circle || '... -> ';
    end if;
    v_waits[v_node] := 2;
    v_node := v_first[v_node];
    exit when v_waits[v_node] = 2;
  end loop;
  perform queue_pg.raise_invalid('depends_on', format(
    'jobs wait for each other in a circle of %s: %s', v_shown, v_circle || v_keys[v_node]));
end
$$;

-- Stores jobs that depend on each other and on jobs that exist, all or none, and returns one row for each in the order
-- given, as submit_many() does, which takes the same objects with two more keys:
--   key         what the others of this call call the job: 1 to 100 letters, digits, _ or -
--   depends_on  its parents, an array: ids of jobs, keys of this call, or objects
--               {"job": id or key, "name": for templates, "on_unsuccessful": "cancel" | "run" | "fail"}
-- A parent's name is its key unless given, else its place in the array from 0. Whatever is wrong raises QP005: a circle, an
-- unknown parent, a template that names none. Of a job that its unique key already names nothing is changed.
create or replace function queue_pg.submit_graph(jobs jsonb) returns table ("position" integer, id uuid, created boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_most_jobs constant integer := 100000;
  v_most_edges constant integer := 1000000;
  v_id constant text := '^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$';
  v_name constant text := '^[A-Za-z0-9_-]{1,100}$';
  v_count integer;
  v_keys text[];
  v_orgs text[];
  -- Those may have ended when they are stored.
  v_cached boolean[];
  v_key_map jsonb;
  -- One entry for each edge: position of the child, place in its depends_on, and what is said there.
  v_children integer[];
  v_places integer[];
  v_refs text[];
  v_names text[];
  v_policies text[];
  v_parents integer[];
  v_parent_ids uuid[];
  v_counts integer[];
  v_awaited boolean[];
  v_elements jsonb;
  v_ids uuid[];
  v_created boolean[];
  v_known jsonb;
  v_bad record;
begin
  if jsonb_typeof(submit_graph.jobs) is distinct from 'array' then
    perform queue_pg.raise_invalid('jobs', 'must be a JSON array of objects');
  end if;
  v_count := jsonb_array_length(submit_graph.jobs);
  if v_count > v_most_jobs then
    perform queue_pg.raise_invalid('jobs', format('has %s jobs; at most %s can depend on each other', v_count, v_most_jobs));
  end if;

  select array_agg(e.value ->> 'key' order by e.ordinality),
    array_agg(coalesce(e.value ->> 'org', 'default') order by e.ordinality),
    array_agg(queue_pg.wants_cache(e.value) order by e.ordinality),
    coalesce(jsonb_object_agg(e.value ->> 'key', e.ordinality) filter (where e.value ->> 'key' is not null), '{}')
  into v_keys, v_orgs, v_cached, v_key_map
  from jsonb_array_elements(submit_graph.jobs) with ordinality e;
  select k.nr into v_bad from unnest(v_keys) with ordinality as k (key, nr)
  where k.key is not null and (k.key !~ v_name or k.key ~ v_id) limit 1;
  if found then
    perform queue_pg.raise_invalid(format('jobs[%s].key', v_bad.nr - 1),
      'must have 1 to 100 letters, digits, _ or -, and not look like an id');
  end if;
  select (v_key_map ->> k.key)::integer as nr, k.key into v_bad from unnest(v_keys) with ordinality as k (key, nr)
  where k.key is not null and (v_key_map ->> k.key)::integer <> k.nr limit 1;
  if found then
    perform queue_pg.raise_invalid(format('jobs[%s].key', v_bad.nr - 1), format('%s is given twice', v_bad.key));
  end if;
  -- Two that turn out to be one could wait for each other.
  select max(e.ordinality) as nr into v_bad from jsonb_array_elements(submit_graph.jobs) with ordinality e
  where e.value ->> 'unique_key' is not null
  group by coalesce(e.value ->> 'org', 'default'), e.value ->> 'unique_key' having count(*) > 1 limit 1;
  if found then
    perform queue_pg.raise_invalid(format('jobs[%s].unique_key', v_bad.nr - 1), 'is given twice');
  end if;

  select e.ordinality as nr into v_bad from jsonb_array_elements(submit_graph.jobs) with ordinality e
  where jsonb_typeof(e.value -> 'depends_on') not in ('array', 'null') limit 1;
  if found then
    perform queue_pg.raise_invalid(queue_pg.depends_on_field(v_count, v_bad.nr::integer, null), 'must be an array');
  end if;
  select array_agg(x.child), array_agg(x.place), array_agg(x.ref), array_agg(coalesce(x.name, x.default_name)),
    array_agg(x.policy)
  into v_children, v_places, v_refs, v_names, v_policies
  from (
    select e.ordinality::integer as child, d.ordinality::integer - 1 as place, r.ref, d.value ->> 'name' as name,
      case when v_key_map ? r.ref then r.ref else (d.ordinality - 1)::text end as default_name,
      case when jsonb_typeof(d.value -> 'on_unsuccessful') is distinct from 'null'
        then coalesce(d.value ->> 'on_unsuccessful', 'cancel') else 'cancel' end as policy
    from jsonb_array_elements(submit_graph.jobs) with ordinality e
    cross join lateral jsonb_array_elements(
      case when jsonb_typeof(e.value -> 'depends_on') = 'array' then e.value -> 'depends_on' else '[]' end
    ) with ordinality d
    cross join lateral (
      select case
        when jsonb_typeof(d.value) = 'string' then d.value #>> '{}'
        when jsonb_typeof(d.value) = 'object' and d.value - '{job,name,on_unsuccessful}'::text[] = '{}' then d.value ->> 'job'
        end as ref
    ) r
    order by e.ordinality, d.ordinality) x;
  if cardinality(v_children) > v_most_edges then
    perform queue_pg.raise_invalid('depends_on', format('has more than %s entries in all', v_most_edges));
  end if;
  select e.child, e.place, case
      when e.ref is null then 'must be the id of a job, a key of this call, or an object of job, name, on_unsuccessful'
      when e.ref !~ v_id and not v_key_map ? e.ref then format('no job of this call has the key %s', left(e.ref, 100))
      when e.name !~ v_name then 'name must have 1 to 100 letters, digits, _ or -'
      else 'on_unsuccessful must be cancel, run or fail' end as reason
  into v_bad
  from unnest(v_children, v_places, v_refs, v_names, v_policies) as e (child, place, ref, name, policy)
  where e.ref is null or (e.ref !~ v_id and not v_key_map ? e.ref) or e.name !~ v_name
    or e.policy not in ('cancel', 'run', 'fail') limit 1;
  if found then
    perform queue_pg.raise_invalid(queue_pg.depends_on_field(v_count, v_bad.child, v_bad.place), v_bad.reason);
  end if;
  select e.child, max(e.place) as place, e.name into v_bad
  from unnest(v_children, v_places, v_names) as e (child, place, name)
  group by e.child, e.name having count(*) > 1 limit 1;
  if found then
    perform queue_pg.raise_invalid(queue_pg.depends_on_field(v_count, v_bad.child, v_bad.place),
      format('the name %s is given twice', v_bad.name));
  end if;
  select array_agg((v_key_map ->> e.ref)::integer order by e.nr),
    array_agg(case when not v_key_map ? e.ref then e.ref::uuid end order by e.nr)
  into v_parents, v_parent_ids
  from unnest(v_refs) with ordinality as e (ref, nr);

  -- Where every parent stands before its children there is no circle.
  if exists (select from unnest(v_children, v_parents) as e (child, parent) where e.parent >= e.child) then
    perform queue_pg.refuse_cycle(v_keys, array_agg(e.child), array_agg(e.parent))
    from unnest(v_children, v_parents) as e (child, parent) where e.parent is not null;
  end if;

  perform queue_pg.check_template(e.value -> 'payload', n.of_child -> e.ordinality::text)
  from (
    select coalesce(jsonb_object_agg(c.child, c.names), '{}') as of_child
    from (
      select e.child, jsonb_object_agg(e.name, true) as names
      from unnest(v_children, v_names) as e (child, name) group by e.child) c
  ) n
  cross join lateral jsonb_array_elements(submit_graph.jobs) with ordinality e
  where n.of_child ? e.ordinality::text and strpos((e.value -> 'payload')::text, '{{') > 0;

  v_counts := array_fill(0, array[v_count]);
  v_awaited := array_fill(false, array[v_count]);
  for v_edge in 1..coalesce(cardinality(v_children), 0) loop
    v_counts[v_children[v_edge]] := v_counts[v_children[v_edge]] + 1;
    if v_parents[v_edge] is not null then
      v_awaited[v_parents[v_edge]] := true;
    end if;
  end loop;
  select coalesce(jsonb_agg(
    case when jsonb_typeof(e.value) = 'object' then (e.value - '{key,depends_on}'::text[]) || jsonb_build_object(
      'parents_left', nullif(v_counts[e.ordinality], 0), 'awaited', v_awaited[e.ordinality]) else e.value end
    order by e.ordinality), '[]')
  into v_elements from jsonb_array_elements(submit_graph.jobs) with ordinality e;
  select array_agg(s.id order by s."position"), array_agg(s.created order by s."position") into v_ids, v_created
  from queue_pg.submit_many(v_elements) s;

  if v_children is not null then
    select coalesce(jsonb_object_agg(h.id, jsonb_build_array(h.org, h.state)), '{}') into v_known
    from queue_pg.hold_parents((
      select array_agg(distinct coalesce(e.parent_id, v_ids[e.parent]))
      from unnest(v_children, v_parents, v_parent_ids) as e (child, parent, parent_id)
      where v_created[e.child] and (e.parent is null or not v_created[e.parent] or v_cached[e.parent]))) h;
    select e.child, e.place, e.parent_id into v_bad
    from unnest(v_children, v_places, v_parents, v_parent_ids) as e (child, place, parent, parent_id)
    where v_created[e.child] and e.parent is null
      and v_known -> e.parent_id::text ->> 0 is distinct from v_orgs[e.child] limit 1;
    if found then
      perform queue_pg.raise_invalid(queue_pg.depends_on_field(v_count, v_bad.child, v_bad.place),
        format('no job %s; it is unknown or forgotten', v_bad.parent_id));
    end if;
    insert into queue_pg.dependencies (child_id, name, parent_id, on_unsuccessful, outcome)
    select v_ids[e.child], e.name, p.id, e.policy,
      case when v_known -> p.id::text ->> 1 in ('completed', 'failed', 'cancelled')
        then (v_known -> p.id::text ->> 1)::queue_pg.job_state end
    from unnest(v_children, v_parents, v_parent_ids, v_names, v_policies) as e (child, parent, parent_id, name, policy)
    cross join lateral (select coalesce(e.parent_id, v_ids[e.parent]) as id) p
    where v_created[e.child];
    -- Parents that have ended already count at once.
    perform queue_pg.recheck_children(c.ids)
    from (
      select array_agg(distinct v_ids[e.child]) as ids
      from unnest(v_children, v_parents, v_parent_ids) as e (child, parent, parent_id)
      where v_created[e.child]
        and v_known -> coalesce(e.parent_id, v_ids[e.parent])::text ->> 1 in ('completed', 'failed', 'cancelled')) c
    where c.ids is not null;
  end if;
  return query
  select o.nr::integer, o.id, o.created from unnest(v_ids, v_created) with ordinality as o (id, created, nr);
end
$$;

-- The place of an entry of depends_on in what was submitted.
create or replace function queue_pg.depends_on_field(count integer, nr integer, place integer) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when count > 1 then format('jobs[%s].', nr - 1) else '' end || 'depends_on'
    || case when place is not null then format('[%s]', place) else '' end
$$;

comment on function queue_pg.submit_graph(jsonb) is
  'Stores an array of job objects that depend on each other (key, depends_on), all or none; returns (position, id, created).';
