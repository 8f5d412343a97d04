"""The schema: spaces, datasets, samples, segments, quarantined rows, saved queries, tags, notes and what was changed.

Changes go through a revision in migrations/; `curator db check` compares the two. Times are UTC.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from curator.types import Image as ContentImage
from curator.types import Sample as Content

__all__ = [
    "NEXT_SAMPLE_ID",
    "STORE_ID",
    "Base",
    "Bookmark",
    "Change",
    "ChangedSample",
    "Counter",
    "Dataset",
    "Extent",
    "Image",
    "Note",
    "Quarantined",
    "Sample",
    "SampleTag",
    "SavedQuery",
    "SavedRepresentation",
    "SavedTop",
    "Segment",
    "Space",
    "Tag",
]


# The names in `counters`.
NEXT_SAMPLE_ID = "next_sample_id"
STORE_ID = "store_id"  # no count, but what ties a database to its store's directory


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time in UTC; SQLite keeps no time zone, so it is put back on reading."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware to naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Naive UTC to aware."""
        return None if value is None else value.replace(tzinfo=UTC)


# SQLite counts rowids only in a column of type INTEGER.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JsonOrNull = sa.JSON(none_as_null=True)  # otherwise None would be the JSON text null


class Base(DeclarativeBase):
    """All tables. Constraints are named, or no migration could drop them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: sa.JSON, list[dict[str, Any]]: sa.JSON, datetime: UtcDateTime}  # noqa: RUF012


class Counter(Base):
    """Numbers that only grow, so that a sample's id is never given twice, deletes and compaction included."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    value: Mapped[int] = mapped_column(sa.BigInteger)


class Space(Base):
    """Model, tokenizer, positions, length, dtype and projection: values are comparable inside one space only."""

    __tablename__ = "spaces"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sa.String(64), unique=True)
    recipe_hash: Mapped[str] = mapped_column(sa.String(64), index=True)  # everything but the projection
    recipe: Mapped[dict[str, Any]]
    model: Mapped[str] = mapped_column(sa.Text)  # where it was loaded from: a hub name or a directory
    revision: Mapped[str | None] = mapped_column(sa.Text)
    model_files: Mapped[dict[str, Any]]
    projection_sha256: Mapped[str] = mapped_column(sa.String(64))
    projection_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    projection: Mapped[dict[str, Any]]  # ranks and how it was fitted
    created_at: Mapped[datetime]


class Dataset(Base):
    """A named set of samples that grows. `next_row` numbers the rows of its sources in the order of their coming."""

    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    next_row: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    fields: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)  # the columns of its newest source, by role
    created_at: Mapped[datetime]


class Extent(Base):
    """Rows [source_row, source_row + num_rows) of a source file are rows [first_row, ...) of the dataset."""

    __tablename__ = "extents"
    __table_args__ = (sa.UniqueConstraint("dataset_id", "source", "source_row"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    dataset_id: Mapped[int] = mapped_column(sa.ForeignKey("datasets.id"))
    source: Mapped[str] = mapped_column(sa.Text)
    source_row: Mapped[int] = mapped_column(sa.BigInteger)
    first_row: Mapped[int] = mapped_column(sa.BigInteger)
    num_rows: Mapped[int] = mapped_column(sa.BigInteger)


class Bookmark(Base):
    """How far a source was read for a dataset in a space: its next ingest begins there, or passes it over."""

    __tablename__ = "bookmarks"
    __table_args__ = (sa.UniqueConstraint("space_id", "dataset_id", "source"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(sa.ForeignKey("spaces.id"))
    dataset_id: Mapped[int] = mapped_column(sa.ForeignKey("datasets.id"))
    source: Mapped[str] = mapped_column(sa.Text)
    reading: Mapped[str] = mapped_column(sa.String(32))  # hash of what decides which samples its rows become
    row: Mapped[int] = mapped_column(sa.BigInteger)  # all rows before it are known
    num_bytes: Mapped[int] = mapped_column(sa.BigInteger)  # of a text: where the row begins
    digest: Mapped[bytes] = mapped_column(sa.LargeBinary(16))  # of a text: of the bytes before
    whole: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16))  # of everything, once it was read to the end
    stamp: Mapped[str | None] = mapped_column(sa.Text)  # the version that was read, where it can be told by the outside
    size: Mapped[int | None] = mapped_column(sa.BigInteger)  # of that version, in bytes
    created_at: Mapped[datetime]


class Segment(Base):
    """An immutable directory of sketches and factors; it exists for the store from the moment this row is committed."""

    __tablename__ = "segments"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(sa.ForeignKey("spaces.id"), index=True)
    name: Mapped[str] = mapped_column(sa.String(100), unique=True)
    first_sample_id: Mapped[int] = mapped_column(sa.BigInteger)
    num_samples: Mapped[int] = mapped_column(sa.BigInteger)
    num_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    files: Mapped[list[dict[str, Any]]]  # name, sha256, num_bytes
    created_at: Mapped[datetime]


class Sample(Base):
    """One training item. A deleted one keeps its row, so that ingesting its source again does not bring it back."""

    __tablename__ = "samples"
    __table_args__ = (
        sa.UniqueConstraint("space_id", "dataset_id", "content_hash"),
        sa.Index(None, "dataset_id", "key"),
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=False)
    space_id: Mapped[int] = mapped_column(sa.ForeignKey("spaces.id"))
    dataset_id: Mapped[int] = mapped_column(sa.ForeignKey("datasets.id"))
    segment_id: Mapped[int | None] = mapped_column(sa.ForeignKey("segments.id"), index=True)  # none: compacted away
    content_hash: Mapped[bytes] = mapped_column(sa.LargeBinary(16))
    row: Mapped[int] = mapped_column(sa.BigInteger)
    key: Mapped[str] = mapped_column(sa.Text)
    has_own_key: Mapped[bool]
    label: Mapped[str | None] = mapped_column(sa.Text, index=True)
    text: Mapped[str | None] = mapped_column(sa.Text)  # of messages: their readable text, for filters and tables
    prompt: Mapped[str | None] = mapped_column(sa.Text)
    response: Mapped[str | None] = mapped_column(sa.Text)
    messages: Mapped[list[dict[str, Any]] | None] = mapped_column(_JsonOrNull)
    tools: Mapped[list[dict[str, Any]] | None] = mapped_column(_JsonOrNull)
    images: Mapped[list[str] | None] = mapped_column(_JsonOrNull)  # hashes, in the order of their placeholders
    meta: Mapped[dict[str, Any]]
    num_tokens: Mapped[int]
    num_counted: Mapped[int]
    is_truncated: Mapped[bool]
    norm: Mapped[float]
    captured: Mapped[float]  # share of ||G||^2 inside the sketch
    loss: Mapped[float]
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    replaced_by: Mapped[int | None] = mapped_column(sa.BigInteger)  # the newer version of its key; then it is deleted

    @property
    def content(self) -> Content:
        """What the model reads of it."""
        images = tuple(ContentImage(sha256) for sha256 in self.images or ())
        if self.messages is not None:
            return Content(messages=self.messages, tools=self.tools, images=images)
        return Content(text=self.text, prompt=self.prompt, response=self.response, images=images)

    @property
    def full_text(self) -> str:
        """The text to show."""
        return self.text if self.text is not None else f"{self.prompt}{self.response}"


class Image(Base):
    """An image that samples or saved queries need: the file images/<first two digits>/<sha256> of the store."""

    __tablename__ = "images"

    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    num_bytes: Mapped[int] = mapped_column(sa.BigInteger)


class Quarantined(Base):
    """A row that could not become a sample, with the reason; gone when its source is ingested again without fault."""

    __tablename__ = "quarantined"
    __table_args__ = (sa.UniqueConstraint("space_id", "dataset_id", "source", "row"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(sa.ForeignKey("spaces.id"))
    dataset_id: Mapped[int] = mapped_column(sa.ForeignKey("datasets.id"))
    source: Mapped[str] = mapped_column(sa.Text)
    row: Mapped[int] = mapped_column(sa.BigInteger)
    reason: Mapped[str] = mapped_column(sa.Text)
    excerpt: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime]


class SavedQuery(Base):
    """A query under a name: weighted means of samples, which are kept as text for the spaces still to come."""

    __tablename__ = "saved_queries"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    description: Mapped[dict[str, Any]]  # as it stands in an answer
    parts: Mapped[list[dict[str, Any]]]  # {"weight", "samples": [{"text"}, {"prompt", "response"} or {"messages"}]}
    num_samples: Mapped[int]
    num_tokens: Mapped[int]
    created_at: Mapped[datetime]


class SavedRepresentation(Base):
    """A saved query as one space sees it: a file in queries/, which serves without the model."""

    __tablename__ = "saved_representations"
    __table_args__ = (sa.UniqueConstraint("query_id", "space"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    query_id: Mapped[int] = mapped_column(sa.ForeignKey("saved_queries.id"))
    space: Mapped[str] = mapped_column(sa.String(64), index=True)  # the fingerprint: a refit makes another
    file: Mapped[str] = mapped_column(sa.String(100), unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    num_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime]


class SavedTop(Base):
    """Both ends of a saved query's answer as they were after an ingest, to tell what a grown corpus changed."""

    __tablename__ = "saved_tops"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    query_id: Mapped[int] = mapped_column(sa.ForeignKey("saved_queries.id"), index=True)
    space: Mapped[str] = mapped_column(sa.String(64))
    num_samples: Mapped[int] = mapped_column(sa.BigInteger)  # in the space, not deleted
    helpful: Mapped[list[dict[str, Any]]]  # {"id", "key", "value"}, best first
    harmful: Mapped[list[dict[str, Any]]]  # worst first
    created_at: Mapped[datetime]


class Tag(Base):
    """A word that samples can bear."""

    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)


class SampleTag(Base):
    """A sample bears a tag. In SQLite the key is the table: some ten bytes a row, and as many for the index."""

    __tablename__ = "sample_tags"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    tag_id: Mapped[int] = mapped_column(sa.ForeignKey("tags.id"), primary_key=True)
    sample_id: Mapped[int] = mapped_column(sa.ForeignKey("samples.id"), primary_key=True, index=True)


class Note(Base):
    """What a person wrote about a sample."""

    __tablename__ = "notes"

    sample_id: Mapped[int] = mapped_column(_Id, sa.ForeignKey("samples.id"), primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(sa.Text)


class Change(Base):
    """One thing that was done to samples, with what it takes to undo it."""

    __tablename__ = "changes"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(20))  # tag, untag, note, delete, restore or replace
    tag_id: Mapped[int | None] = mapped_column(sa.ForeignKey("tags.id"))
    num_samples: Mapped[int] = mapped_column(sa.BigInteger)  # that it really changed
    detail: Mapped[dict[str, Any]]  # how they were chosen; a note's text before and after
    created_at: Mapped[datetime]
    undone_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ChangedSample(Base):
    """A sample that a change really changed; gone once that is undone. No foreign key: the log outlives samples."""

    __tablename__ = "changed_samples"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    change_id: Mapped[int] = mapped_column(sa.ForeignKey("changes.id"), primary_key=True)
    sample_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
