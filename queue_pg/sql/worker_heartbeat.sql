/* queue_pg:worker_heartbeat */
select queue_pg.worker_heartbeat(
  %(id)s::text, %(active)s::integer, %(processed)s::bigint, %(failed)s::bigint, %(stopping)s::boolean) as fleet
