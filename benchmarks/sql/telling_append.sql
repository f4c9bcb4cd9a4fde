select queue_pg.append_event(%s::uuid, %s::bigint, 'tick', %s::jsonb)
