"""Compact: rewrites segments without their deleted samples, and joins small neighbours. Ids and values stay.

Images that only deleted samples had go with them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.images import drop_unneeded_images, known_images
from curator.metadata.samples import deleted_ids, has_deleted, rows_changed
from curator.metadata.tables import Sample, Space
from curator.metadata.tables import Segment as SegmentRow
from curator.store import Store
from index.segment import Segment, SegmentArrays, gather_factors, write_segment

__all__ = ["compact"]

_MAX_SAMPLES, _MAX_TOKENS = 8192, 1_000_000


def compact(store: Store, session: Session) -> dict[str, Any]:
    """{"segments_before", "segments_after", "samples_removed", "bytes_reclaimed"}; one commit per rewritten group.

    Killed anywhere, a group is either rewritten or as it was.
    """
    before, bytes_before = _totals(session)
    removed = 0
    for space in session.scalars(sa.select(Space)).all():
        deleted = deleted_ids(session, space.id)
        for group in _groups(session, space.id):
            if len(group) > 1 or has_deleted(session, group[0].id):
                removed += _rewrite(store, session, space, group, deleted)
                _drop_indexes(store, space)
    drop_unneeded_images(session)
    store.sweep()
    store.images.sweep({sha256 for sha256, _ in known_images(session)})
    after, bytes_after = _totals(session)
    return {
        "segments_before": before,
        "segments_after": after,
        "samples_removed": removed,
        "bytes_reclaimed": bytes_before - bytes_after,
    }


def _drop_indexes(store: Store, space: Space) -> None:
    """The vector index is a cache of the old segments, deleted samples included: the next query builds it anew."""
    for path in store.index_directory(space).glob("*"):
        if path.suffix != ".tmp":  # of a process that is writing one
            path.unlink(missing_ok=True)


def _totals(session: Session) -> tuple[int, int]:
    segments = session.scalars(sa.select(SegmentRow)).all()
    of_images = sum(num_bytes for _, num_bytes in known_images(session))
    return len(segments), of_images + sum(file["num_bytes"] for segment in segments for file in segment.files)


def _groups(session: Session, space_id: int) -> Iterator[list[SegmentRow]]:
    """Neighbouring segments that fit into one, in order of their ids."""
    group: list[SegmentRow] = []
    samples = tokens = 0
    query = sa.select(SegmentRow).where(SegmentRow.space_id == space_id).order_by(SegmentRow.first_sample_id)
    for segment in session.scalars(query).all():
        samples, tokens = samples + segment.num_samples, tokens + segment.num_tokens
        if group and (samples > _MAX_SAMPLES or tokens > _MAX_TOKENS):
            yield group
            group, samples, tokens = [], segment.num_samples, segment.num_tokens
        group.append(segment)
    if group:
        yield group


def _rewrite(store: Store, session: Session, space: Space, group: list[SegmentRow], deleted: np.ndarray) -> int:
    # A segment without live samples is not opened: so a damaged one can be got rid of.
    opened = [store.segment(row.name) for row in group if _has_live(session, row.id)]
    kept = [~np.isin(segment.ids, deleted) for segment in opened]
    old = [row.id for row in group]
    new: SegmentRow | None = None
    if any(mask.any() for mask in kept):
        arrays = _merged(opened, kept)
        name = f"{int(arrays.ids[0]):012d}-{len(arrays.ids)}-{group[-1].id}"
        with store.publishing("segments", name) as directory:
            files = write_segment(directory, arrays)
        new = SegmentRow(
            space_id=space.id,
            name=name,
            first_sample_id=int(arrays.ids[0]),
            num_samples=len(arrays.ids),
            num_tokens=len(arrays.factors),
            files=[{"name": f.name, "sha256": f.sha256, "num_bytes": f.num_bytes} for f in files],
            created_at=datetime.now(UTC),
        )
        session.add(new)
        session.flush()
    in_group = Sample.segment_id.in_(old)
    gone = rows_changed(
        session,
        sa.update(Sample)
        .where(in_group, Sample.deleted_at.is_not(None))
        .values(segment_id=None, text=None, prompt=None, response=None, messages=None, tools=None, images=None),
    )
    if new is not None:
        rows_changed(session, sa.update(Sample).where(in_group).values(segment_id=new.id))
    session.execute(sa.delete(SegmentRow).where(SegmentRow.id.in_(old)))
    session.commit()
    return gone


def _has_live(session: Session, segment_id: int) -> bool:
    query = sa.select(Sample.id).where(Sample.segment_id == segment_id, Sample.deleted_at.is_(None)).limit(1)
    return session.scalars(query).first() is not None


def _merged(segments: list[Segment], kept: list[np.ndarray]) -> SegmentArrays:
    places = [(s, int(row)) for s, mask in zip(segments, kept, strict=True) for row in np.flatnonzero(mask)]
    return SegmentArrays(
        ids=np.array([segment.ids[row] for segment, row in places], dtype=np.int64),
        norms=np.array([segment.norms[row] for segment, row in places], dtype=np.float32),
        sketches=np.concatenate([s.sketch_rows(np.flatnonzero(m)) for s, m in zip(segments, kept, strict=True)]),
        factors=gather_factors(places),
        offsets=np.cumsum([0] + [segment.num_tokens_of[row] for segment, row in places], dtype=np.int64),
    )
