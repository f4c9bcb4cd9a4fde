"""The same faults and ledgers for other queues, each from its registry and set up as its own documentation says."""
