select count(*) from plain_events
