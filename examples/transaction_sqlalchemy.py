"""Submit in an SQLAlchemy session; the same works with AsyncSession and the async Queue.

python examples/transaction_sqlalchemy.py
"""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from queue_pg import SyncQueue


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "example_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


def main() -> None:
    with SyncQueue() as queue:
        engine = create_engine(queue.dsn.replace("postgresql://", "postgresql+psycopg://"))
        Base.metadata.create_all(engine)

        with Session(engine) as session, session.begin():
            order = Order(item="book")
            session.add(order)
            session.flush()  # gives order.id
            queue.submit("send_receipt", {"order": order.id}, connection=session)

        with Session(engine) as session:
            session.add(Order(item="lamp"))
            queue.submit("send_receipt", {"order": -1}, connection=session)
            session.rollback()

        for job in queue.list(kind="send_receipt", with_payload=True).jobs:
            print(f"{job.kind} for order {job.payload['order']}: {job.state}")
        Base.metadata.drop_all(engine)
        engine.dispose()


main()
