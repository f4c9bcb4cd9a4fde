/* queue_pg:doctor_newer_release */
-- A migration that a release newer than %(version)s applied; no rows when there is none. The database was then
-- released with a description that this version does not have.
select m.name
from queue_pg.migrations m
where string_to_array(substring(m.version from '^[0-9]+(?:[.][0-9]+)*'), '.')::integer[]
  > string_to_array(substring(%(version)s from '^[0-9]+(?:[.][0-9]+)*'), '.')::integer[]
limit 1
