"""A Postgres of one's own, for machines that have none: `make demo`, `queue-pg dev`, tests.

    with EmbeddedPostgres(Path(".data/postgres")) as dsn:
        ...

The data folder is kept between runs. Whoever starts it while it runs shares the one server; the last user to leave
(or to die) stops it. It listens on 127.0.0.1 only, on a free port, with a random password, so every driver, psql and
other processes can use the DSN as it is. Blocking calls: use `asyncio.to_thread` in async code.

Inside the folder: `cluster/` (Postgres's own data; for root possibly a link to where an unprivileged account may work),
`server.log`, `port`, and three lock files: `start.lock` (one starter or stopper at a time), `users.lock` (shared by the
users), `guard.lock` (held while the server's parent process lives). Locks are `flock`s, which end with their process.
"""

from __future__ import annotations

from queue_pg.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
