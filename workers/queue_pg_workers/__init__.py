"""The worker process of queue-pg: claims jobs, runs their handlers, records their outcomes."""
