-- Artifacts: files that belong to a job. A content goes in by begin_artifact, append_artifact for each chunk of 1 MiB and
-- complete_artifact, each a short transaction of its own; or by put_artifact in one call. A running job's artifacts are
-- added under its lease, like every write about it. Reading checks hashes again.

-- Returns the name as it is stored (Unicode NFC), or raises QP030 and says what is wrong with it. A name is a relative
-- path that any system can save as a file and that hides nothing: what begins as text of a stranger ends as a path.
create or replace function queue_pg.artifact_name(name text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := artifact_name.name;
  v_segments text[];
  v_segment text;
  v_reason text;
begin
  -- normalize() works in UTF8 only; elsewhere there is one way to write a character.
  if getdatabaseencoding() = 'UTF8' then
    v_name := normalize(v_name, nfc);
  end if;
  v_segments := string_to_array(v_name, '/');
  v_reason := case
    when v_name is null or v_name = '' then 'is empty'
    when octet_length(v_name) > 1024 then 'is longer than 1,024 bytes'
    -- C0, DEL, C1; what has no width; what changes the order in which text is shown.
    when v_name ~ '[\u0001-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]'
      then 'holds a control character or one that cannot be seen'
    when strpos(v_name, '\') > 0 then 'holds a backslash; folders are separated by /'
    when v_name ~ '[<>:"|?*]' then 'holds one of < > : " | ? *, which not every system can save'
    when left(v_name, 1) = '/' then 'begins with /; names are relative'
    when right(v_name, 1) = '/' then 'ends with /, and so names no file'
    when cardinality(v_segments) > 16 then 'has more than 16 segments'
  end;
  if v_reason is null then
    foreach v_segment in array v_segments loop
      v_reason := coalesce(v_reason, case
        when v_segment = '' then 'has an empty segment'
        when v_segment in ('.', '..') then format('has the segment %s; names stay inside the job', v_segment)
        when octet_length(v_segment) > 255 then 'has a segment longer than 255 bytes'
        when v_segment ~ '^\s|[\s.]$' then 'has a segment that begins or ends with a space, or ends with a dot'
        when v_segment ~* '^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)'
          then format('has the segment %s, which is a device on Windows', v_segment)
      end);
    end loop;
  end if;
  if v_reason is not null then
    perform queue_pg.raise_artifact_refused('name', v_reason);
  end if;
  return v_name;
end
$$;

comment on function queue_pg.artifact_name is 'An artifact''s name as it is stored; raises QP030 for one that is not safe.';

create or replace function queue_pg.artifact_content_type(content_type text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if content_type is null or content_type = '' then
    return 'application/octet-stream';
  end if;
  -- What may stand in a header of HTTP, and nothing that ends it.
  if length(content_type) > 255 or content_type !~ '^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+([ ]*;[ !-~]*)?$' then
    perform queue_pg.raise_artifact_refused('content_type', 'must look like text/plain, and have at most 255 characters');
  end if;
  return content_type;
end
$$;

-- The attempt that may leave an artifact now. Raises when nobody may: a running job takes artifacts from the worker that
-- holds its lease alone, one that waits to run takes inputs from anybody, and a finished one does not change.
-- The lock keeps a lease from passing to another worker until the caller's transaction ends: FOR SHARE, because the
-- update that takes a lease away would not wait for a weaker one.
create or replace function queue_pg.artifact_attempt(job_id uuid, lease_token bigint) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_attempt integer;
  v_leased boolean;
  v_state text;
begin
  if lease_token is not null then
    select j.attempt into v_attempt from queue_pg.jobs j
    where j.id = artifact_attempt.job_id and j.lease_expires_at is not null
      and j.lease_token = artifact_attempt.lease_token
    for share;
    if found then
      return v_attempt;
    end if;
    v_state := queue_pg.state_of(job_id);
    if v_state is null then
      perform queue_pg.raise_not_found(job_id);
    end if;
    perform queue_pg.raise_lease_lost(job_id, v_state);
  end if;
  loop
    -- Not locked: a claim would have to skip it.
    select j.attempt, j.lease_expires_at is not null into v_attempt, v_leased
    from queue_pg.jobs j where j.id = artifact_attempt.job_id;
    if found and v_leased then
      perform queue_pg.raise_artifact_refused('lease_token', 'is needed while the job runs');
    elsif found then
      return v_attempt;
    end if;
    v_state := queue_pg.state_of(job_id);
    if v_state is null then
      perform queue_pg.raise_not_found(job_id);
    elsif v_state in ('completed', 'failed', 'cancelled') then
      perform queue_pg.raise_wrong_state(job_id, 'add an artifact to', v_state);
    end if;
    -- Live again: somebody retried it between the two looks.
  end loop;
end
$$;

-- Raises QP031 for a content of this size, together with what the job has and what is under way to it.
create or replace function queue_pg.check_artifact_size(job_id uuid, size bigint, under_way bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_settings queue_pg.settings;
  v_bytes bigint;
begin
  select s.* into v_settings from queue_pg.settings s;
  if size > v_settings.max_artifact_bytes then
    perform queue_pg.raise_artifact_too_large('size',
      format('is over the limit of %s bytes for one artifact', v_settings.max_artifact_bytes), v_settings.max_artifact_bytes);
  end if;
  select t.bytes into v_bytes from queue_pg.artifact_totals t where t.job_id = check_artifact_size.job_id;
  if coalesce(v_bytes, 0) + under_way > v_settings.max_job_artifact_bytes then
    perform queue_pg.raise_artifact_too_large('size',
      format('is more than the %s bytes that the artifacts of one job may hold together', v_settings.max_job_artifact_bytes),
      v_settings.max_job_artifact_bytes);
  end if;
end
$$;

-- Puts the chunk there unless it is. One that no longer has its hash is replaced, so that uploading a content again
-- repairs it.
create or replace function queue_pg.keep_chunk(data bytea) returns bytea
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_sha256 bytea := pg_catalog.sha256(keep_chunk.data);
begin
  insert into queue_pg.chunks as c (sha256, data) values (v_sha256, keep_chunk.data)
  on conflict on constraint chunks_pkey do update set data = excluded.data
  where pg_catalog.sha256(c.data) is distinct from c.sha256;
  return v_sha256;
end
$$;

-- The blob with this content, which is that of `id` in blob_chunks unless there was one already; then that of `id` is
-- forgotten. A blob that is there is locked against removal until the caller's transaction ends.
create or replace function queue_pg.keep_blob(id uuid, sha256 bytea, size bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_known queue_pg.blobs;
  v_chunks bytea := pg_catalog.sha256((
    select coalesce(string_agg(c.sha256, ''::bytea order by c.number), ''::bytea)
    from queue_pg.blob_chunks c where c.blob_id = keep_blob.id));
begin
  loop
    insert into queue_pg.blobs (id, sha256, size, chunks_sha256)
    values (keep_blob.id, keep_blob.sha256, keep_blob.size, v_chunks)
    on conflict on constraint blobs_sha256_key do nothing;
    if found then
      return;
    end if;
    select b.* into v_known from queue_pg.blobs b where b.sha256 = keep_blob.sha256 for key share;
    exit when found;
    -- Removed between the two.
  end loop;
  -- The hash of the whole is its uploader's word, those of the chunks are ours: a content that lied about it must not
  -- take another one's place.
  if v_known.size <> keep_blob.size or v_known.chunks_sha256 <> v_chunks then
    perform queue_pg.raise_artifact_corrupt(keep_blob.sha256, 'another content is stored under this hash');
  end if;
  delete from queue_pg.blob_chunks c where c.blob_id = keep_blob.id;
end
$$;

-- Makes an artifact of a blob. One of the same name, of this attempt or an earlier one, is replaced.
create or replace function queue_pg.attach_artifact(
  job_id uuid, name text, size bigint, sha256 bytea, content_type text, attempt integer)
returns queue_pg.artifacts
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := queue_pg.now();
  v_totals queue_pg.artifact_totals;
  v_old queue_pg.artifacts;
  v_new queue_pg.artifacts;
  v_most integer := (select s.max_artifacts from queue_pg.settings s);
begin
  -- Locks the row, so that two artifacts added at once are both counted.
  insert into queue_pg.artifact_totals as t (job_id, artifacts, bytes, created_at, look_at)
  values (attach_artifact.job_id, 0, 0, v_now, v_now + interval '10 minutes')
  on conflict on constraint artifact_totals_pkey do update set look_at = t.look_at
  returning t.* into v_totals;
  select a.* into v_old from queue_pg.artifacts a
  where a.job_id = attach_artifact.job_id and a.name = attach_artifact.name;
  if not found and v_totals.artifacts >= v_most then
    perform queue_pg.raise_artifact_too_large('count', format('a job may have at most %s artifacts', v_most), v_most);
  end if;
  update queue_pg.artifact_totals t
  set artifacts = t.artifacts + case when v_old.job_id is null then 1 else 0 end,
    bytes = t.bytes + attach_artifact.size - coalesce(v_old.size, 0)
  where t.job_id = attach_artifact.job_id;
  perform queue_pg.check_artifact_size(attach_artifact.job_id, attach_artifact.size, 0);

  insert into queue_pg.artifacts as a (job_id, name, size, sha256, content_type, attempt, created_at)
  values (attach_artifact.job_id, attach_artifact.name, attach_artifact.size, attach_artifact.sha256,
    attach_artifact.content_type, attach_artifact.attempt, v_now)
  on conflict on constraint artifacts_pkey do update
  set size = excluded.size, sha256 = excluded.sha256, content_type = excluded.content_type,
    attempt = excluded.attempt, created_at = excluded.created_at
  returning a.* into v_new;
  if v_old.sha256 <> attach_artifact.sha256 then
    update queue_pg.blobs b set unused_since = v_now where b.sha256 = v_old.sha256;
  end if;
  return v_new;
end
$$;

-- Begins an upload and returns its id, for append_artifact and complete_artifact. `size` is for those who know it, so
-- that what is too large is refused before it is sent.
create or replace function queue_pg.begin_artifact(
  job_id uuid, name text, content_type text default null, lease_token bigint default null, size bigint default null)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text := queue_pg.artifact_name(begin_artifact.name);
  v_id uuid;
begin
  perform queue_pg.check_artifact_size(
    begin_artifact.job_id, coalesce(begin_artifact.size, 0), coalesce(begin_artifact.size, 0));
  perform queue_pg.artifact_attempt(begin_artifact.job_id, begin_artifact.lease_token);
  insert into queue_pg.uploads (job_id, name, content_type, lease_token)
  values (begin_artifact.job_id, v_name, queue_pg.artifact_content_type(begin_artifact.content_type),
    begin_artifact.lease_token)
  returning id into v_id;
  return v_id;
end
$$;

comment on function queue_pg.begin_artifact is 'Begins to store a large artifact; returns the id of the upload.';

-- Stores chunk `number` (from 0) of an upload. All but the last have 1 MiB. A worker that lost its lease is told so here
-- already, and not after the last gigabyte.
create or replace function queue_pg.append_artifact(upload_id uuid, number integer, data bytea) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_chunk constant integer := 1048576;
  v_upload queue_pg.uploads;
  v_size integer := coalesce(octet_length(data), 0);
begin
  if v_size not between 1 and v_chunk then
    perform queue_pg.raise_artifact_refused('data', 'a chunk has 1 to 1,048,576 bytes');
  end if;
  update queue_pg.uploads u
  set size = u.size + v_size, chunks = u.chunks + 1, touched_at = queue_pg.now()
  where u.id = append_artifact.upload_id
  returning u.* into v_upload;
  if not found then
    perform queue_pg.raise_artifact_refused('upload', 'is not under way (any more); begin again');
  end if;
  if number is distinct from v_upload.chunks - 1 then
    perform queue_pg.raise_artifact_refused('number', format('chunk %s is expected', v_upload.chunks - 1));
  end if;
  if v_upload.size - v_size <> number::bigint * v_chunk then
    perform queue_pg.raise_artifact_refused('data', 'only the last chunk may have less than 1,048,576 bytes');
  end if;
  perform queue_pg.check_artifact_size(v_upload.job_id, v_upload.size,
    (select sum(u.size)::bigint from queue_pg.uploads u where u.job_id = v_upload.job_id));
  perform queue_pg.artifact_attempt(v_upload.job_id, v_upload.lease_token);
  insert into queue_pg.blob_chunks (blob_id, number, sha256)
  values (v_upload.id, append_artifact.number, queue_pg.keep_chunk(append_artifact.data));
end
$$;

comment on function queue_pg.append_artifact is 'Stores the next chunk of an upload: 1 MiB, the last one less.';

-- Ends an upload: from now on the job has the artifact. `sha256` is that of the whole content.
create or replace function queue_pg.complete_artifact(upload_id uuid, sha256 bytea)
returns queue_pg.artifacts
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_upload queue_pg.uploads;
  v_attempt integer;
begin
  if complete_artifact.sha256 is null or octet_length(complete_artifact.sha256) <> 32 then
    perform queue_pg.raise_artifact_refused('sha256', 'must have 32 bytes');
  end if;
  delete from queue_pg.uploads u where u.id = complete_artifact.upload_id returning u.* into v_upload;
  if not found then
    perform queue_pg.raise_artifact_refused('upload', 'is not under way (any more); begin again');
  end if;
  v_attempt := queue_pg.artifact_attempt(v_upload.job_id, v_upload.lease_token);
  perform queue_pg.keep_blob(v_upload.id, complete_artifact.sha256, v_upload.size);
  return queue_pg.attach_artifact(
    v_upload.job_id, v_upload.name, v_upload.size, complete_artifact.sha256, v_upload.content_type, v_attempt);
end
$$;

comment on function queue_pg.complete_artifact is 'Ends an upload: the job has the artifact from now on.';

-- Gives an upload up. One that was given up or completed before is no error.
create or replace function queue_pg.discard_artifact(upload_id uuid) returns void
language sql as $$
  with given_up as (
    delete from queue_pg.uploads u where u.id = discard_artifact.upload_id returning u.id
  )
  insert into queue_pg.discarded_blobs (blob_id) select g.id from given_up g
$$;

comment on function queue_pg.discard_artifact is 'Gives an upload up; maintenance removes what had arrived.';

-- Stores an artifact in one call:
--   select * from queue_pg.put_artifact(id, 'logs/out.txt', convert_to('done', 'UTF8'), 'text/plain', lease_token)
create or replace function queue_pg.put_artifact(
  job_id uuid, name text, data bytea, content_type text default null, lease_token bigint default null)
returns queue_pg.artifacts
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_chunk constant integer := 1048576;
  v_id uuid := queue_pg.uuid7();
  v_name text := queue_pg.artifact_name(put_artifact.name);
  v_type text := queue_pg.artifact_content_type(put_artifact.content_type);
  v_size bigint := octet_length(put_artifact.data);
  v_number integer;
  v_attempt integer;
begin
  if put_artifact.data is null then
    perform queue_pg.raise_artifact_refused('data', 'must be given');
  end if;
  perform queue_pg.check_artifact_size(put_artifact.job_id, v_size, 0);
  v_attempt := queue_pg.artifact_attempt(put_artifact.job_id, put_artifact.lease_token);
  -- In the order of their hashes, in which all that lock several chunks lock them.
  for v_number in
    select n from generate_series(0, ((v_size + v_chunk - 1) / v_chunk)::integer - 1) n
    order by pg_catalog.sha256(substring(put_artifact.data from n * v_chunk + 1 for v_chunk)), n
  loop
    insert into queue_pg.blob_chunks (blob_id, number, sha256)
    values (v_id, v_number, queue_pg.keep_chunk(substring(put_artifact.data from v_number * v_chunk + 1 for v_chunk)));
  end loop;
  perform queue_pg.keep_blob(v_id, pg_catalog.sha256(put_artifact.data), v_size);
  return queue_pg.attach_artifact(
    put_artifact.job_id, v_name, v_size, pg_catalog.sha256(put_artifact.data), v_type, v_attempt);
end
$$;

comment on function queue_pg.put_artifact is 'Stores an artifact of a job in one call; one of the same name is replaced.';

create or replace function queue_pg.list_artifacts(job_id uuid)
returns table (name text, size bigint, sha256 text, content_type text, attempt integer, created_at timestamptz)
language sql volatile as $$
  select a.name, a.size, encode(a.sha256, 'hex'), a.content_type, a.attempt, a.created_at
  from queue_pg.artifacts a
  where a.job_id = list_artifacts.job_id
    and exists (select from queue_pg.all_jobs j where j.id = list_artifacts.job_id)
  order by a.name
$$;

comment on function queue_pg.list_artifacts is 'The artifacts of a job, by name.';

-- The whole content, for psql. Others read chunk by chunk, in memory that does not grow with it (queue_pg/artifacts.py).
create or replace function queue_pg.read_artifact(job_id uuid, name text) returns bytea
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_most constant bigint := 268435456;
  v_artifact queue_pg.artifacts;
  v_data bytea;
begin
  select a.* into v_artifact from queue_pg.artifacts a
  where a.job_id = read_artifact.job_id and a.name = queue_pg.artifact_name(read_artifact.name)
    and exists (select from queue_pg.all_jobs j where j.id = read_artifact.job_id);
  if not found then
    if queue_pg.state_of(read_artifact.job_id) is null then
      perform queue_pg.raise_not_found(read_artifact.job_id);
    end if;
    perform queue_pg.raise_artifact_not_found(read_artifact.job_id, read_artifact.name);
  end if;
  if v_artifact.size > v_most then
    perform queue_pg.raise_artifact_too_large('size', format('is over %s bytes; read it in chunks', v_most), v_most);
  end if;
  select coalesce(string_agg(c.data, ''::bytea order by p.number), ''::bytea) into v_data
  from queue_pg.blobs b
  join queue_pg.blob_chunks p on p.blob_id = b.id
  join queue_pg.chunks c on c.sha256 = p.sha256
  where b.sha256 = v_artifact.sha256;
  if pg_catalog.sha256(v_data) <> v_artifact.sha256 then
    perform queue_pg.raise_artifact_corrupt(v_artifact.sha256, 'it does not have this hash any more');
  end if;
  return v_data;
end
$$;

comment on function queue_pg.read_artifact is 'The content of an artifact of at most 256 MiB, its hash checked.';

-- --- what has to happen by itself ------------------------------------------------------------------------------------

-- Forgets artifacts whose job is no longer readable, contents that no artifact has referred to for an hour (whoever reads
-- one that was replaced meanwhile reads it to its end), and uploads that have stopped. In bites; true when there may be
-- more. Every step locks rows and then looks again with a snapshot of its own: what somebody took up in between stays.
create or replace function queue_pg.sweep_artifacts() returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_bite constant integer := 100;
  v_now timestamptz := queue_pg.now();
  v_grace constant interval := '1 hour';
  v_job queue_pg.artifact_totals;
  v_blob queue_pg.blobs;
  v_until timestamptz;
  v_count bigint;
  v_more boolean := false;
begin
  for v_job in
    select t.* from queue_pg.artifact_totals t
    where t.look_at <= v_now order by t.look_at limit v_bite for update skip locked
  loop
    v_more := true;
    -- In one statement, whose snapshot shows a job that moves in exactly one of the places. A live one is looked at again
    -- after as long as it has had artifacts, from ten minutes to a day.
    v_until := coalesce(
      (select v_now + least(greatest(v_now - v_job.created_at, '10 minutes'), '1 day')
        from queue_pg.jobs j where j.id = v_job.job_id),
      (select f.retain_until from queue_pg.finished_jobs f where f.id = v_job.job_id and f.retain_until > v_now));
    if v_until is null then
      perform queue_pg.forget_artifacts(v_job.job_id, 1000);
    else
      update queue_pg.artifact_totals t set look_at = v_until where t.job_id = v_job.job_id;
    end if;
  end loop;

  for v_blob in
    select b.* from queue_pg.blobs b
    where b.unused_since <= v_now - v_grace order by b.unused_since limit v_bite for update skip locked
  loop
    v_more := true;
    -- Locked: nobody can begin to refer to it.
    if exists (select from queue_pg.artifacts a where a.sha256 = v_blob.sha256) then
      update queue_pg.blobs b set unused_since = null where b.id = v_blob.id;
    else
      delete from queue_pg.blobs b where b.id = v_blob.id;
      insert into queue_pg.discarded_blobs (blob_id) values (v_blob.id);
    end if;
  end loop;

  with stopped as (
    delete from queue_pg.uploads u
    where u.id = any (array(
      select s.id from queue_pg.uploads s where s.touched_at <= v_now - v_grace limit v_bite for update skip locked))
    returning u.id
  )
  insert into queue_pg.discarded_blobs (blob_id) select s.id from stopped s;
  get diagnostics v_count = row_count;
  return queue_pg.remove_discarded(v_bite) or v_more or v_count > 0;
end
$$;

-- Removes some artifacts of a job that is gone, and its row when none is left.
create or replace function queue_pg.forget_artifacts(job_id uuid, most integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_hashes bytea[];
begin
  with gone as (
    delete from queue_pg.artifacts a
    where a.job_id = forget_artifacts.job_id and a.name = any (array(
      select b.name from queue_pg.artifacts b where b.job_id = forget_artifacts.job_id order by b.name limit most))
    returning a.sha256
  )
  select array_agg(distinct g.sha256) into v_hashes from gone g;
  perform from queue_pg.blobs b where b.sha256 = any (v_hashes) order by b.sha256 for no key update;
  update queue_pg.blobs b set unused_since = queue_pg.now() where b.sha256 = any (v_hashes);
  delete from queue_pg.artifact_totals t
  where t.job_id = forget_artifacts.job_id
    and not exists (select from queue_pg.artifacts a where a.job_id = forget_artifacts.job_id);
end
$$;

-- Removes up to `most` chunks of discarded contents, except those that another content has too. True when there is more.
create or replace function queue_pg.remove_discarded(most integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_ids uuid[];
  v_hashes bytea[];
begin
  v_ids := array(
    select d.blob_id from queue_pg.discarded_blobs d order by d.blob_id limit most for update skip locked);
  if cardinality(v_ids) = 0 then
    return false;
  end if;
  with bite as materialized (
    select b.blob_id, b.number from queue_pg.blob_chunks b
    where b.blob_id = any (v_ids) order by b.blob_id, b.number limit most
  ),
  gone as (
    delete from queue_pg.blob_chunks b using bite where b.blob_id = bite.blob_id and b.number = bite.number
    returning b.sha256
  )
  select array_agg(distinct g.sha256) into v_hashes from gone g;
  -- First locked, then looked whether they are in use: whoever refers to one locks it as well (its foreign key does).
  perform from queue_pg.chunks c where c.sha256 = any (v_hashes) order by c.sha256 for update;
  delete from queue_pg.chunks c
  where c.sha256 = any (v_hashes) and not exists (select from queue_pg.blob_chunks b where b.sha256 = c.sha256);
  delete from queue_pg.discarded_blobs d
  where d.blob_id = any (v_ids) and not exists (select from queue_pg.blob_chunks b where b.blob_id = d.blob_id);
  return exists (select from queue_pg.discarded_blobs);
end
$$;
