"""conversations: the turns of a sample, and the tools they may call

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.batch_alter_table("samples") as table:
        table.add_column(sa.Column("messages", sa.JSON(), nullable=True))
        table.add_column(sa.Column("tools", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("samples") as table:
        table.drop_column("tools")
        table.drop_column("messages")
