"""tags and notes of samples, and a log of changes that can be undone

Revision ID: 0003
Revises: 0002
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "tags",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tags")),
        sa.UniqueConstraint("name", name=op.f("uq_tags_name")),
    )
    op.create_table(
        "sample_tags",
        sa.Column("tag_id", _ID, nullable=False),
        sa.Column("sample_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["tag_id"], ["tags.id"], name=op.f("fk_sample_tags_tag_id_tags")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_sample_tags_sample_id_samples")),
        sa.PrimaryKeyConstraint("tag_id", "sample_id", name=op.f("pk_sample_tags")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_sample_tags_sample_id", "sample_tags", ["sample_id"], unique=False)
    op.create_table(
        "notes",
        sa.Column("sample_id", _ID, autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_notes_sample_id_samples")),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_notes")),
    )
    op.create_table(
        "changes",
        sa.Column("id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("tag_id", _ID, nullable=True),
        sa.Column("num_samples", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("undone_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["tag_id"], ["tags.id"], name=op.f("fk_changes_tag_id_tags")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    op.create_table(
        "changed_samples",
        sa.Column("change_id", _ID, nullable=False),
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["change_id"], ["changes.id"], name=op.f("fk_changed_samples_change_id_changes")),
        sa.PrimaryKeyConstraint("change_id", "sample_id", name=op.f("pk_changed_samples")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("changed_samples")
    op.drop_table("changes")
    op.drop_table("notes")
    op.drop_index("ix_sample_tags_sample_id", "sample_tags")
    op.drop_table("sample_tags")
    op.drop_table("tags")
