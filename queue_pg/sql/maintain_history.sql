/* queue_pg:maintain_history */
select * from queue_pg.maintain_history()
