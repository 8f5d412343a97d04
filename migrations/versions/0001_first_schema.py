"""spaces, datasets, samples, segments, quarantine

Revision ID: 0001
Revises: nothing
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


# SQLite counts rowids only in a column of type INTEGER.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("next_row", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_datasets_name")),
    )
    op.create_table(
        "spaces",
        sa.Column("id", _ID, nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("recipe_hash", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("model_files", sa.JSON(), nullable=False),
        sa.Column("projection_sha256", sa.String(length=64), nullable=False),
        sa.Column("projection_bytes", sa.BigInteger(), nullable=False),
        sa.Column("projection", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spaces")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_spaces_fingerprint")),
    )
    op.create_index("ix_spaces_recipe_hash", "spaces", ["recipe_hash"], unique=False)

    op.create_table(
        "extents",
        sa.Column("id", _ID, nullable=False),
        sa.Column("dataset_id", _ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_row", sa.BigInteger(), nullable=False),
        sa.Column("first_row", sa.BigInteger(), nullable=False),
        sa.Column("num_rows", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_extents_dataset_id_datasets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_extents")),
        sa.UniqueConstraint("dataset_id", "source", "source_row", name=op.f("uq_extents_dataset_id_source_source_row")),
    )
    op.create_table(
        "quarantined",
        sa.Column("id", _ID, nullable=False),
        sa.Column("space_id", _ID, nullable=False),
        sa.Column("dataset_id", _ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("excerpt", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_quarantined_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_quarantined_space_id_spaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantined")),
        sa.UniqueConstraint(
            "space_id", "dataset_id", "source", "row", name=op.f("uq_quarantined_space_id_dataset_id_source_row")
        ),
    )
    op.create_table(
        "segments",
        sa.Column("id", _ID, nullable=False),
        sa.Column("space_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("first_sample_id", sa.BigInteger(), nullable=False),
        sa.Column("num_samples", sa.BigInteger(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_segments_space_id_spaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segments")),
        sa.UniqueConstraint("name", name=op.f("uq_segments_name")),
    )
    op.create_index("ix_segments_space_id", "segments", ["space_id"], unique=False)

    op.create_table(
        "samples",
        sa.Column("id", _ID, autoincrement=False, nullable=False),
        sa.Column("space_id", _ID, nullable=False),
        sa.Column("dataset_id", _ID, nullable=False),
        sa.Column("segment_id", _ID, nullable=True),
        sa.Column("content_hash", sa.LargeBinary(length=16), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("has_own_key", sa.Boolean(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("response", sa.Text(), nullable=True),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("num_counted", sa.Integer(), nullable=False),
        sa.Column("is_truncated", sa.Boolean(), nullable=False),
        sa.Column("norm", sa.Double(), nullable=False),
        sa.Column("captured", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_samples_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["segment_id"], ["segments.id"], name=op.f("fk_samples_segment_id_segments")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_samples_space_id_spaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_samples")),
        sa.UniqueConstraint(
            "space_id", "dataset_id", "content_hash", name=op.f("uq_samples_space_id_dataset_id_content_hash")
        ),
    )
    op.create_index("ix_samples_dataset_id_key", "samples", ["dataset_id", "key"], unique=False)
    op.create_index("ix_samples_deleted_at", "samples", ["deleted_at"], unique=False)
    op.create_index("ix_samples_label", "samples", ["label"], unique=False)
    op.create_index("ix_samples_segment_id", "samples", ["segment_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_samples_segment_id", "samples")
    op.drop_index("ix_samples_label", "samples")
    op.drop_index("ix_samples_deleted_at", "samples")
    op.drop_index("ix_samples_dataset_id_key", "samples")

    op.drop_table("samples")
    op.drop_index("ix_segments_space_id", "segments")

    op.drop_table("segments")
    op.drop_table("quarantined")
    op.drop_table("extents")
    op.drop_index("ix_spaces_recipe_hash", "spaces")

    op.drop_table("spaces")
    op.drop_table("datasets")
    op.drop_table("counters")
