select accepted from queue_pg.finish(%s::uuid[], %s::bigint[], %s::text[], array_fill('null'::jsonb, array[cardinality(%s::uuid[])]))
