"""Models of the queue, and what holds the SQL functions against them: docs/reliability.md, "Models"."""
