"""The HTTP service of queue-pg: submissions, reads, control and pull workers over the functions of the database."""

from __future__ import annotations

from queue_pg_api.app import create_app

__all__ = ["create_app"]
