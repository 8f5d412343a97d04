"""Writes and commits what has been through the model, in a thread of its own and in order: one commit a segment."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np

from curator.ingest.intake import NewSample, Window
from curator.ingest.report import IngestReport
from curator.ingest.workers import Part
from curator.metadata.commits import commit_rows, commit_segment, next_sample_id
from curator.metadata.tables import Segment as SegmentRow
from curator.store import Store, keep_images
from curator.value import Representation
from index.factors import QuantizedFactors
from index.segment import SegmentArrays, write_segment

__all__ = ["SegmentWriter"]

Kept = Sequence[tuple[NewSample, Representation]]


class SegmentWriter:
    """Commits windows one after another while the next one is in the model; at most one waits.

    Leaving the context waits for the commit under way and raises what went wrong in it.
    """

    def __init__(self, store: Store, space_id: int, dataset_id: int, report: IngestReport):
        self._store, self._space_id, self._dataset_id, self._report = store, space_id, dataset_id, report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segment-writer")
        self._under_way: Future[None] | None = None
        self._refused: set[str] = set()  # sources with rows that the model could not take
        self.committed: deque[list[NewSample]] = deque()  # windows that are in the database now

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._settle()

    def write(self, window: Window, parts: Sequence[Part]) -> None:
        """Hands a window over; samples that the model refused go to quarantine with their rows."""
        self._settle()
        self._under_way = self._thread.submit(self._commit, window, parts)

    def _settle(self) -> None:
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _commit(self, window: Window, parts: Sequence[Part]) -> None:
        kept = []
        for new, part in zip(window.samples, parts, strict=True):
            if isinstance(part, Representation):
                kept.append((new, part))
            else:
                sample = new.sample
                window.read.bad.append(self._report.bad_row(sample.source, sample.row, part, sample.full_text))
                self._refused.add(sample.source)
        for source in self._refused & window.read.bookmarks.keys():
            del window.read.bookmarks[source]  # the next ingest tries again what the model could not take
        with self._store.session() as session:
            if kept:
                first = next_sample_id(session)
                segment = self._publish(first, kept)
                rows = [self._row(first + at, new, part) for at, (new, part) in enumerate(kept)]
                keep_images(self._store, session, [new.sample for new, _ in kept])
                for sample_id, (new, _) in enumerate(kept, start=first):
                    if new.forgets is not None:
                        window.read.forgotten.append(new.forgets)
                    if new.replaces is not None:
                        window.read.replaced.append((new.replaces, sample_id))
                commit_segment(session, window.read, segment, rows)
            else:
                commit_rows(session, window.read)
        self.committed.append(window.samples)
        replacing = sum(new.replaces is not None for new, _ in kept)
        self._report.added += len(kept) - replacing
        self._report.replaced += replacing
        self._report.truncated += sum(new.encoded.is_truncated for new, _ in kept)
        self._report.tokens += sum(new.encoded.num_tokens for new, _ in kept)

    def _publish(self, first: int, kept: Kept) -> SegmentRow:
        arrays = _arrays(np.arange(first, first + len(kept), dtype=np.int64), [part for _, part in kept])
        name = f"{first:012d}-{kept[0][0].content_hash.hex()[:8]}"
        with self._store.publishing("segments", name) as directory:
            files = write_segment(directory, arrays)
        return SegmentRow(
            space_id=self._space_id,
            name=name,
            first_sample_id=first,
            num_samples=len(kept),
            num_tokens=len(arrays.factors),
            files=[{"name": f.name, "sha256": f.sha256, "num_bytes": f.num_bytes} for f in files],
            created_at=datetime.now(UTC),
        )

    def _row(self, sample_id: int, new: NewSample, part: Representation) -> dict[str, Any]:
        sample = new.sample
        return {
            "id": sample_id,
            "space_id": self._space_id,
            "dataset_id": self._dataset_id,
            "content_hash": new.content_hash,
            "row": new.row,
            "key": new.key,
            "has_own_key": sample.key is not None,
            "label": sample.label,
            "text": sample.text if sample.messages is None else sample.full_text,
            "prompt": sample.prompt,
            "response": sample.response,
            "messages": sample.messages,
            "tools": sample.tools,
            "images": [image.sha256 for image in sample.images] or None,
            "meta": sample.meta,
            "num_tokens": new.encoded.num_tokens,
            "num_counted": new.encoded.num_counted,
            "is_truncated": new.encoded.is_truncated,
            "norm": part.norm,
            "captured": min(1.0, float(np.square(part.sketch, dtype=np.float64).sum()) / max(part.norm**2, 1e-30)),
            "loss": part.loss,
        }


def _arrays(ids: np.ndarray, parts: list[Representation]) -> SegmentArrays:
    return SegmentArrays(
        ids=ids,
        norms=np.array([part.norm for part in parts], dtype=np.float32),
        sketches=np.stack([part.sketch for part in parts]).astype(np.float32),
        factors=QuantizedFactors.concatenate([part.factors for part in parts]),
        offsets=np.cumsum([0] + [len(part.factors) for part in parts], dtype=np.int64),
    )
