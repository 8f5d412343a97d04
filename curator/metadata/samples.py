"""Samples by hash, key, id and filter."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import NotFoundError, UsageError
from curator.metadata.tables import Dataset, Note, Sample, SampleTag, Segment, Tag
from curator.metadata.where import Column, Several, compile_where, field_names
from curator.metadata.where_meta import is_absent

__all__ = [
    "COLUMNS",
    "Chosen",
    "by_hash",
    "chosen",
    "condition",
    "count_elsewhere",
    "deleted_ids",
    "find_sample",
    "has_deleted",
    "identities",
    "key_holders",
    "keys_between",
    "live_ids",
    "live_ids_by_dataset",
    "live_rows",
    "rows_by_id",
    "rows_changed",
]

# What --where can name. Everything else is looked up in the metadata.
_C = Sample.__table__.c
_TAGGED = sa.select(SampleTag.sample_id).join(Tag, SampleTag.tag_id == Tag.id)
COLUMNS: dict[str, Column] = {
    "id": _C.id,
    "key": _C.key,
    "dataset": Dataset.__table__.c.name,
    "row": _C.row,
    "label": _C.label,
    "text": sa.func.coalesce(_C.text, _C.prompt + _C.response, type_=sa.Text()),
    "prompt": _C.prompt,
    "response": _C.response,
    "num_tokens": _C.num_tokens,
    "num_counted": _C.num_counted,
    "is_truncated": _C.is_truncated,
    "norm": _C.norm,
    "captured": _C.captured,
    "loss": _C.loss,
    "tag": Several(Tag.__table__.c.name, lambda condition: _C.id.in_(_TAGGED.where(condition))),
    "note": sa.select(Note.text).where(Note.sample_id == _C.id).correlate(Sample.__table__).scalar_subquery(),
}
Chosen = list[sa.ColumnElement[bool]]
_FEW = 500  # SQLite's default limit of bound values is 32,766; small lists keep statements cached


def _in_portions(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + _FEW] for start in range(0, len(values), _FEW))


def by_hash(session: Session, space_id: int, dataset_id: int, hashes: Sequence[bytes]) -> dict[bytes, sa.Row[Any]]:
    """Those of the hashes that the dataset already holds, deleted ones included."""
    columns = (
        Sample.content_hash,
        Sample.id,
        Sample.label,
        Sample.meta,
        Sample.deleted_at,
        Sample.replaced_by,
        Sample.segment_id,
    )
    return {
        row.content_hash: row
        for some in _in_portions(hashes)
        for row in session.execute(
            sa.select(*columns).where(
                Sample.space_id == space_id, Sample.dataset_id == dataset_id, Sample.content_hash.in_(some)
            )
        )
    }


def identities(session: Session, space_id: int) -> dict[int, tuple[str, str, bytes]]:
    """Dataset, key and content hash of every sample of a space by id: what makes it the same one in another space."""
    columns = (Sample.id, Dataset.name, Sample.key, Sample.content_hash)
    query = sa.select(*columns).join(Dataset, Sample.dataset_id == Dataset.id).where(Sample.space_id == space_id)
    return {row.id: (row.name, row.key, row.content_hash) for row in session.execute(query)}


def key_holders(session: Session, space_id: int, dataset_id: int, keys: Sequence[str]) -> dict[str, sa.Row[Any]]:
    """The live samples of the dataset that bear one of the keys: id, row, has_own_key."""
    return {
        str(holder.key): cast(sa.Row[Any], holder)
        for some in _in_portions(keys)
        for holder in session.execute(
            sa.select(Sample.key, Sample.id, Sample.row, Sample.has_own_key).where(
                Sample.space_id == space_id,
                Sample.dataset_id == dataset_id,
                Sample.key.in_(some),
                Sample.deleted_at.is_(None),
            )
        )
    }


def rows_by_id(session: Session, ids: Sequence[int]) -> dict[int, tuple[Sample, str]]:
    """(Sample, dataset name) of each id."""
    return {
        row[0].id: (row[0], row[1])
        for some in _in_portions(ids)
        for row in session.execute(
            sa.select(Sample, Dataset.name).join(Dataset, Sample.dataset_id == Dataset.id).where(Sample.id.in_(some))
        )
    }


def find_sample(session: Session, space_id: int, name: int | str) -> int:
    """The id of the space's sample with this id (an int, or digits that are no key) or key; not deleted.

    Raises NotFoundError for none, and UsageError for a key that samples of several datasets bear.
    """
    live = (Sample.space_id == space_id, Sample.deleted_at.is_(None))
    query = sa.select(Sample.id, Dataset.name).join(Dataset, Sample.dataset_id == Dataset.id).where(*live)
    rows = session.execute(query.where(Sample.key == name)).all() if isinstance(name, str) else []
    if not rows and (isinstance(name, int) or (name.isascii() and name.isdigit() and len(name) < 19)):
        rows = session.execute(query.where(Sample.id == int(name))).all()
    if not rows:
        raise NotFoundError(f"no sample with key or id {name!r} in this space, or it is deleted")
    if len(rows) > 1:
        found = ", ".join(f"{row.id} ({row.name})" for row in rows)
        raise UsageError(f"several samples have the key {name!r}; give an id: {found}")
    return int(rows[0].id)


def keys_between(session: Session, first: int, last: int) -> dict[int, str]:
    """The keys of all samples with ids in [first, last], deleted ones and those of other spaces included.

    Asked for one space, SQLite takes the index over spaces and reads all of it for every block: 185 s for a million.
    """
    rows = session.execute(sa.select(Sample.id, Sample.key).where(Sample.id.between(first, last)))
    return {id_: key for id_, key in rows}  # noqa: C416 (dict() of rows is no dict of pairs to the type checker)


def live_ids(session: Session, space_id: int, where: str | None = None) -> np.ndarray:
    """Ids of the samples that are not deleted and match the filter: int64, ascending."""
    query = sa.select(Sample.id).where(Sample.space_id == space_id, Sample.deleted_at.is_(None))
    if where is not None:
        query = query.join(Dataset, Sample.dataset_id == Dataset.id).where(condition(session, where))
    return _ids(session, query)


def live_ids_by_dataset(session: Session, space_id: int) -> dict[str, np.ndarray]:
    """By dataset's name what `live_ids` gives, datasets without any left out."""
    live = sa.select(Sample.id).where(Sample.space_id == space_id, Sample.deleted_at.is_(None))
    datasets = session.execute(sa.select(Dataset.name, Dataset.id).order_by(Dataset.name)).all()
    found = {name: _ids(session, live.where(Sample.dataset_id == id_)) for name, id_ in datasets}
    return {name: ids for name, ids in found.items() if len(ids)}


def live_rows(session: Session, space_id: int, names: Sequence[str], where: str | None = None) -> Iterator[Any]:
    """(id, the columns of these names) of the same samples, streamed in order of ids; meta, messages and tools too."""
    columns = [_C[name] if name in ("meta", "messages", "tools") else COLUMNS[name] for name in names]
    query = (
        sa.select(_C.id, *columns)
        .select_from(sa.join(Sample, Dataset, Sample.dataset_id == Dataset.id))
        .where(Sample.space_id == space_id, Sample.deleted_at.is_(None))
        .order_by(_C.id)
    )
    if where is not None:
        query = query.where(condition(session, where))
    yield from session.execute(query, execution_options={"yield_per": 10_000})


def deleted_ids(session: Session, space_id: int) -> np.ndarray:
    """Ids of deleted samples whose vectors are still in a segment: int64, ascending."""
    query = sa.select(Sample.id).where(
        Sample.space_id == space_id, Sample.deleted_at.is_not(None), Sample.segment_id.is_not(None)
    )
    return _ids(session, query)


def _ids(session: Session, query: sa.Select[int]) -> np.ndarray:
    """The ids that a query selects: int64, ascending.

    They come as one text, 8 bytes an id, and never are objects of Python: of a million samples 880,000 in .44 s of
    processor time instead of 1.09, where finding them takes .33. Both databases hold 1 GB of text, 100 million ids.
    """
    chosen = query.order_by(Sample.id).subquery()
    text = session.scalar(sa.select(sa.func.aggregate_strings(sa.cast(chosen.c.id, sa.Text), ",")))
    ids: np.ndarray = np.fromstring(text or "", dtype=np.int64, sep=",")
    return ids if (ids[1:] > ids[:-1]).all() else np.sort(ids)  # no database promises the order inside a text


def has_deleted(session: Session, segment_id: int) -> bool:
    """Whether a segment holds vectors of deleted samples."""
    query = sa.select(Sample.id).where(Sample.segment_id == segment_id, Sample.deleted_at.is_not(None)).limit(1)
    return session.scalars(query).first() is not None


def count_elsewhere(session: Session, space_id: int) -> int:
    """Samples in the store's other spaces, not deleted: from the segments, since counting a million rows takes 1 s."""
    stored = session.scalar(sa.select(sa.func.sum(Segment.num_samples)).where(Segment.space_id != space_id)) or 0
    if not stored:
        return 0
    is_gone = (Sample.deleted_at.is_not(None), Sample.segment_id.is_not(None), Sample.space_id != space_id)
    return int(stored) - (session.scalar(sa.select(sa.func.count(Sample.id)).where(*is_gone)) or 0)


def rows_changed(session: Session, statement: sa.Update | sa.Delete) -> int:
    """Runs an update or delete in the database, past the objects in memory; returns the number of rows."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, sa.CursorResult)
    return result.rowcount


def chosen(session: Session, *, where: str | None = None, ids: Sequence[int] | None = None) -> Chosen:
    """What a filter or a list of ids means: conditions on samples joined with datasets, one or a few hundred ids each.

    Raises NotFoundError for an id that no sample has.
    """
    if where is not None:
        return [condition(session, where)]
    wanted = sorted(set(ids or ()))
    conditions: Chosen = [Sample.id.in_(some) for some in _in_portions(wanted)]
    found = sum(session.scalar(sa.select(sa.func.count(Sample.id)).where(some)) or 0 for some in conditions)
    if found < len(wanted):
        known = {id_ for some in conditions for id_ in session.scalars(sa.select(Sample.id).where(some))}
        raise NotFoundError(f"no sample with id {next(id_ for id_ in wanted if id_ not in known)}")
    return conditions


def condition(session: Session, where: str) -> sa.ColumnElement[bool]:
    """What a filter states of samples joined with their datasets. Raises FilterError."""
    known = _meta_fields(session)
    # A field that only few samples have is not among those: ask for each name that the filter uses.
    for name in field_names(where) - known - COLUMNS.keys():
        if session.scalars(sa.select(Sample.id).where(sa.not_(is_absent(_C.meta, name))).limit(1)).first() is not None:
            known.add(name)
    return compile_where(where, COLUMNS, _C.meta, known)


def _meta_fields(session: Session) -> set[str]:
    """Metadata names of the corpus, from up to 1,000 samples of each dataset."""
    names: set[str] = set()
    for dataset_id in session.scalars(sa.select(Dataset.id)):
        for meta in session.scalars(sa.select(Sample.meta).where(Sample.dataset_id == dataset_id).limit(1000)):
            names.update(meta)
    return names
