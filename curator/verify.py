"""Verify: every file against its hash, every count against the database."""

from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import IntegrityError
from curator.metadata.images import known_images, needed_images
from curator.metadata.tables import NEXT_SAMPLE_ID, Counter, Sample, SavedRepresentation, Segment, Space
from curator.store import PROJECTION_FILE, Store
from index.segment import verify_files
from index.stored import StoredFile

__all__ = ["verify"]


def verify(store: Store, session: Session) -> dict[str, Any]:
    """{"spaces", "segments", "samples", "files", "bytes", "problems"}; the store is sound when problems is empty."""
    problems: list[str] = []
    files, num_bytes = 0, 0
    spaces = session.scalars(sa.select(Space)).all()
    for space in spaces:
        stored = [StoredFile(PROJECTION_FILE, space.projection_sha256, space.projection_bytes)]
        problems += verify_files(store.root / "spaces" / space.fingerprint, stored)
        files, num_bytes = files + 1, num_bytes + space.projection_bytes
    segments = session.scalars(sa.select(Segment)).all()
    for segment in segments:
        stored = [StoredFile(**file) for file in segment.files]
        damaged = verify_files(store.root / "segments" / segment.name, stored)
        problems += damaged or _content_problems(store, session, segment)
        files, num_bytes = files + len(stored), num_bytes + sum(file.num_bytes for file in stored)
    for query in session.scalars(sa.select(SavedRepresentation)).all():
        file = StoredFile(query.file, query.sha256, query.num_bytes)
        problems += verify_files(store.root / "queries", [file])
        files, num_bytes = files + 1, num_bytes + file.num_bytes
    images = known_images(session)
    problems += store.images.problems(images)
    lost = needed_images(session) - {sha256 for sha256, _ in images}
    problems += [
        f"image {sha256}: a sample or a saved query needs it, and the store does not name it" for sha256 in lost
    ]
    files, num_bytes = files + len(images), num_bytes + sum(size for _, size in images)
    num_samples = session.scalar(sa.select(sa.func.count(Sample.id)).where(Sample.deleted_at.is_(None))) or 0
    problems += _database_problems(session)
    return {
        "spaces": len(spaces),
        "segments": len(segments),
        "samples": num_samples,
        "files": files,
        "bytes": num_bytes,
        "problems": problems,
    }


def _content_problems(store: Store, session: Session, segment: Segment) -> list[str]:
    """A segment's ids must be those of its samples, and its token counts theirs."""
    try:
        opened = store.segment(segment.name)
    except IntegrityError as error:
        return [str(error)]
    rows = session.execute(
        sa.select(Sample.id, Sample.num_counted).where(Sample.segment_id == segment.id).order_by(Sample.id)
    ).all()
    ids = np.array([row.id for row in rows], dtype=np.int64)
    if not np.array_equal(ids, opened.ids):
        return [f"segment {segment.name}: holds {len(opened.ids)} ids, the database names {len(ids)} or other ones"]
    if (opened.num_samples, opened.num_tokens) != (segment.num_samples, segment.num_tokens):
        return [f"segment {segment.name}: counts differ from the database's"]
    if sum(row.num_counted for row in rows) != opened.num_tokens:
        return [
            f"segment {segment.name}: {opened.num_tokens} tokens, its samples count {sum(r.num_counted for r in rows)}"
        ]
    return []


def _database_problems(session: Session) -> list[str]:
    problems = []
    lost = session.scalar(
        sa.select(sa.func.count(Sample.id)).where(Sample.deleted_at.is_(None), Sample.segment_id.is_(None))
    )
    if lost:
        problems.append(f"{lost} samples have no segment")
    highest = session.scalar(sa.select(sa.func.max(Sample.id))) or 0
    counter = session.get(Counter, NEXT_SAMPLE_ID)
    if counter is not None and counter.value <= highest:
        problems.append(f"the id counter is at {counter.value}, but sample {highest} exists")
    return problems
