/* queue_pg:look_said */
-- The newest of what the handler of a job has said: log lines, chunks of output, progress and events of its own; with
-- `stream` only the log lines of that one.
select e.seq, e.at, e.type, left(e.data ->> 'stream', 100) as stream,
  left(case e.type when 'log' then e.data ->> 'line' when 'chunk' then e.data ->> 'text' else e.data::text end,
    %(characters)s::integer) as text
from (select o.id from queue_pg.job(%(id)s::uuid) o where %(org)s::text is null or o.org = %(org)s) as own
join queue_pg.job_events e on e.job_id = own.id
where not e.type = any (queue_pg.reserved_events())
  and (%(stream)s::text is null or e.type = 'log' and e.data ->> 'stream' = %(stream)s)
order by e.seq desc
limit %(limit)s::integer
