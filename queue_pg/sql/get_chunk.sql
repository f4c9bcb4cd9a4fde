/* queue_pg:get_chunk */
select c.data from queue_pg.chunks c where c.sha256 = %(sha256)s::bytea
