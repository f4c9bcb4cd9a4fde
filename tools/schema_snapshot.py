"""Write migrations/schema.snapshot from what the migrations make; run it after a deliberate change (make snapshot)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from queue_pg import schema
from queue_pg.embedded import EmbeddedPostgres


def main() -> None:
    target = Path(__file__).resolve().parent.parent / "migrations" / "schema.snapshot"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # as root, the server's account has to pass through
        with EmbeddedPostgres(Path(folder) / "postgres", durable=False) as dsn:
            schema.migrate(dsn)
            with schema.connect(dsn) as connection:
                target.write_text("\n".join(schema.snapshot(connection)) + "\n")


if __name__ == "__main__":
    main()
