"""Alembic's entry: runs on the connection that curator/metadata/database.py hands over, or on `-x url=...`."""

from typing import Any

import sqlalchemy as sa
from alembic import context

from curator.metadata.tables import Base


def run(connection: sa.Connection) -> None:
    """Migrates one database inside one transaction."""
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


handed_over: Any = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    url = context.get_x_argument(as_dictionary=True).get("url", "sqlite://")
    with sa.create_engine(url).connect() as connection:
        run(connection)
