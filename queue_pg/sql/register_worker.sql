/* queue_pg:register_worker */
select queue_pg.register_worker(
  %(id)s::text, %(host)s::text, %(pid)s::integer, %(version)s::text, %(queues)s::text[], %(kinds)s::text[],
  %(capacity)s::integer)
