/* queue_pg:configure */
select queue_pg.configure(
  retention => %(retention_seconds)s::float8 * interval '1 second',
  max_attempts => %(max_attempts)s::integer,
  timeout => %(timeout_seconds)s::float8 * interval '1 second',
  max_artifact_bytes => %(max_artifact_bytes)s::bigint,
  max_artifacts => %(max_artifacts)s::integer,
  max_job_artifact_bytes => %(max_job_artifact_bytes)s::bigint)
