"""Submit inside Django's `transaction.atomic()`: give it `django.db.connection`.

python examples/transaction_django.py
"""

from __future__ import annotations

import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

from queue_pg import SyncQueue


def configure(dsn: str) -> None:
    """Do what your settings.py does."""
    address = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address["dbname"],
        "USER": address.get("user", ""),
        "PASSWORD": address.get("password", ""),
        "HOST": address.get("host", ""),
        "PORT": address.get("port", ""),
    }
    settings.configure(DATABASES={"default": database}, USE_TZ=True)
    django.setup()


def main() -> None:
    with SyncQueue() as queue:
        configure(queue.dsn)
        from django.db import connection, transaction

        with transaction.atomic():
            queue.submit("send_receipt", {"item": "book"}, connection=connection)

        try:
            with transaction.atomic():
                queue.submit("send_receipt", {"item": "lamp"}, connection=connection)
                raise ValueError("the payment failed")
        except ValueError as error:
            print(f"rolled back: {error}")

        for job in queue.list(kind="send_receipt", with_payload=True).jobs:
            print(f"{job.kind} for a {job.payload['item']}: {job.state}")
        connection.close()


main()
