select accepted from queue_pg.finish(%s::uuid[], %s::bigint[], %s::text[])
