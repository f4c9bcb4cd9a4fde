set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off; set enable_hashjoin = off;
set enable_mergejoin = off; set jit = off;
create temp table picked (id uuid)
