/* queue_pg:logs */
select l.seq, l.at, l.stream, l.line, l.data::text as data
from queue_pg.logs(%(id)s::uuid, %(from_seq)s::integer, %(limit)s::integer, %(stream)s::text) l
order by l.seq
