-- breaking: no
-- Whoever appends events is told whether somebody reads along, and then need not gather them for long.

-- Made anew with one more column in its answer.
drop function if exists queue_pg.append_events(uuid[], bigint[], text[], jsonb[]);
