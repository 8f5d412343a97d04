"""saved queries, as each space sees them, and the history of their answers

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "saved_queries",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("num_samples", sa.Integer(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_queries")),
        sa.UniqueConstraint("name", name=op.f("uq_saved_queries_name")),
    )
    op.create_table(
        "saved_representations",
        sa.Column("id", _ID, nullable=False),
        sa.Column("query_id", _ID, nullable=False),
        sa.Column("space", sa.String(length=64), nullable=False),
        sa.Column("file", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["query_id"], ["saved_queries.id"], name=op.f("fk_saved_representations_query_id_saved_queries")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_representations")),
        sa.UniqueConstraint("file", name=op.f("uq_saved_representations_file")),
        sa.UniqueConstraint("query_id", "space", name=op.f("uq_saved_representations_query_id_space")),
    )
    op.create_index("ix_saved_representations_space", "saved_representations", ["space"], unique=False)
    op.create_table(
        "saved_tops",
        sa.Column("id", _ID, nullable=False),
        sa.Column("query_id", _ID, nullable=False),
        sa.Column("space", sa.String(length=64), nullable=False),
        sa.Column("num_samples", sa.BigInteger(), nullable=False),
        sa.Column("helpful", sa.JSON(), nullable=False),
        sa.Column("harmful", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["query_id"], ["saved_queries.id"], name=op.f("fk_saved_tops_query_id_saved_queries")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_tops")),
    )
    op.create_index("ix_saved_tops_query_id", "saved_tops", ["query_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_saved_tops_query_id", "saved_tops")
    op.drop_table("saved_tops")
    op.drop_index("ix_saved_representations_space", "saved_representations")
    op.drop_table("saved_representations")
    op.drop_table("saved_queries")
