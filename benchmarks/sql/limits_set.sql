select queue_pg.set_limit('key', '*', max_running => 1000000)
