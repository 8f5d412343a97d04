"""Ingest: plan, calibrate, then forward passes segment by segment, one commit each.

Killed anywhere, the store holds exactly the committed segments; the same command takes up after the last one. Segments
are cut by the new samples themselves, so that a resumed ingest makes the same segments as an uninterrupted one.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import UsageError
from curator.ingest.intake import Intake, NewSample, portions, read_samples, require_usable
from curator.ingest.report import IngestReport, Meter, OnProgress
from curator.metadata.commits import RowNumbers, commit_rows, commit_segment, next_sample_id
from curator.metadata.spaces import dataset_named
from curator.metadata.tables import Sample as SampleRow
from curator.metadata.tables import Segment as SegmentRow
from curator.metadata.tables import Space
from curator.models import OnLong, Positions
from curator.sources import check_fields, count_rows, resolve
from curator.space import LoadedModel, SpaceOptions, add_space, existing_space, load_for_ingest
from curator.store import Store
from curator.types import BadRow, EncodedSample, Fields, Sample
from curator.value import DEFAULT_BATCH_TOKENS, Forward, Ranks, Representation, calibrate
from curator.value.calibrate import MAX_BYTES
from index.factors import QuantizedFactors
from index.projection import Projection
from index.segment import SegmentArrays, write_segment

__all__ = ["IngestOptions", "ingest"]

_FIRST_ROWS = 100_000  # what calibration samples are drawn from
_MIN_CALIBRATION, _MAX_CALIBRATION = 256, 1024
_ROWS_BETWEEN_COMMITS = 20_000  # of rows that bring nothing new


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest. None of these changes a value, except through `space` and `seed` when the space is new."""

    space: SpaceOptions = field(default_factory=SpaceOptions)
    on_long: OnLong = "truncate"
    device: str = "auto"
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    segment_samples: int = 4096
    segment_tokens: int = 250_000
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("on_long", self.on_long, get_args(OnLong)),
            ("positions", self.space.positions, (None, *get_args(Positions))),
        ):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(filter(None, known))}; got {value!r}")
        for name in ("batch_tokens", "segment_samples", "segment_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")


def ingest(
    store: Store,
    data: Sequence[str | Path],
    *,
    dataset: str,
    model: str | None,
    revision: str | None = None,
    fields: Fields,
    options: IngestOptions,
    on_progress: OnProgress = lambda progress: None,
) -> IngestReport:
    """Adds the rows of `data` that the store does not have. Raises before the first write when nothing is usable."""
    if not dataset.strip() or len(dataset) > 200 or not dataset.isprintable():
        raise UsageError(f"--dataset must be a name of 1 to 200 printable characters, got {dataset[:50]!r}")
    started = time.perf_counter()
    paths, fields = resolve(data), check_fields(fields)
    require_usable(paths, fields)
    report = IngestReport(dataset)
    meter = Meter(report, count_rows(paths), on_progress)
    with store.writing(), store.session() as session:
        try:
            loaded = _load(session, model, revision, options)
            space = existing_space(session, loaded) or _new_space(store, session, loaded, paths, fields, options, meter)
            run = _Run(store, session, loaded, space, dataset, fields.label is not None, options, meter)
            run.take(read_samples(paths, fields))
        except KeyboardInterrupt:
            session.rollback()
            report.is_interrupted = True
        report.num_samples = _count(session, dataset)
    report.seconds = time.perf_counter() - started
    return report


def _load(session: Session, model: str | None, revision: str | None, options: IngestOptions) -> LoadedModel:
    spaces = session.scalars(sa.select(Space)).all()
    loaded = load_for_ingest(model, revision, options.space, device=options.device, known_spaces=spaces)
    loaded.encoder.on_long = options.on_long
    return loaded


def _new_space(
    store: Store,
    session: Session,
    loaded: LoadedModel,
    paths: list[Path],
    fields: Fields,
    options: IngestOptions,
    meter: Meter,
) -> Space:
    """Calibrates on a random part of the first data and commits the space."""
    started = time.perf_counter()
    drawn = _draw(read_samples(paths, fields), options.seed)
    results = [item for portion in portions(drawn) for item in loaded.encoder.encode(portion)]
    encoded = [item for item in results if isinstance(item, EncodedSample)]
    if not encoded:
        raise UsageError(f"no row of {paths[0].name} is usable: {results[0]}")
    meter.tell("calibrating")
    head = loaded.lm.head
    affordable = _within(encoded, MAX_BYTES // (head.hidden_size * head.weight.element_size()))
    hidden = Forward(loaded.lm, options.batch_tokens).hidden(affordable)
    projection = calibrate(hidden, head, ranks=options.ranks, seed=options.seed)
    space = add_space(store, session, loaded, projection)
    meter.report.is_new_space = True
    meter.report.calibration_seconds = time.perf_counter() - started
    return space


def _count(session: Session, dataset: str) -> int:
    known = dataset_named(session, dataset)
    query = sa.select(sa.func.count(SampleRow.id)).where(
        SampleRow.dataset_id == known.id, SampleRow.deleted_at.is_(None)
    )
    return session.scalar(query) or 0


class _Run:
    """The open segment of an ingest, and what goes into it."""

    def __init__(
        self,
        store: Store,
        session: Session,
        loaded: LoadedModel,
        space: Space,
        dataset: str,
        has_label: bool,
        options: IngestOptions,
        meter: Meter,
    ):
        self.store, self.session, self.space, self.options = store, session, space, options
        self.meter, self.report = meter, meter.report
        self.report.space = space.fingerprint
        self.forward = Forward(loaded.lm, options.batch_tokens)
        self.projection: Projection = store.projection(space).to(loaded.lm.device)
        self.numbers = RowNumbers.load(session, space.id, dataset_named(session, dataset))
        self.intake = Intake(
            session, loaded.encoder, self.numbers, self.report, dataset, has_label, next_sample_id(session)
        )
        self.window: list[NewSample] = []
        self.window_tokens = 0
        self.rows_at_commit = 0

    def take(self, items: Iterator[Sample | BadRow]) -> None:
        """Reads, sorts and commits until the data ends; what was read of a file that breaks off is kept."""
        try:
            for new in self.intake.new_samples(items):
                self.meter.waiting += len(new)
                for sample in new:
                    self._put(sample)
                if self.report.rows - self.rows_at_commit >= _ROWS_BETWEEN_COMMITS:
                    # The open segment stays open: where it is cut must depend on its samples only.
                    commit_rows(self.session, self.numbers)
                    self.rows_at_commit = self.report.rows
                self.meter.tell("ingesting")
        except UsageError:
            self._commit()
            raise
        self._commit()

    def _put(self, sample: NewSample) -> None:
        self.window.append(sample)
        self.window_tokens += sample.encoded.num_tokens
        if len(self.window) >= self.options.segment_samples or self.window_tokens >= self.options.segment_tokens:
            self._commit()

    def _commit(self) -> None:
        """Runs the open segment through the model, writes it, and commits it with everything read so far."""
        window, self.window, self.window_tokens = self.window, [], 0
        self.rows_at_commit = self.report.rows
        found = self._represent(window)
        kept = [(new, part) for new, part in zip(window, found, strict=True) if part is not None]
        if not kept:
            commit_rows(self.session, self.numbers)
        else:
            first = next_sample_id(self.session)
            ids = np.arange(first, first + len(kept), dtype=np.int64)
            arrays = _arrays(ids, [part for _, part in kept])
            name = f"{first:012d}-{kept[0][0].content_hash.hex()[:8]}"
            with self.store.publishing("segments", name) as directory:
                files = write_segment(directory, arrays)
            segment = SegmentRow(
                space_id=self.space.id,
                name=name,
                first_sample_id=first,
                num_samples=len(kept),
                num_tokens=len(arrays.factors),
                files=[{"name": f.name, "sha256": f.sha256, "num_bytes": f.num_bytes} for f in files],
                created_at=datetime.now(UTC),
            )
            rows = [self._row(int(id_), new, part) for id_, (new, part) in zip(ids, kept, strict=True)]
            commit_segment(self.session, self.numbers, segment, rows)
        self.intake.committed(window)
        self.report.added += len(kept)
        self.report.truncated += sum(new.encoded.is_truncated for new, _ in kept)
        self.report.tokens += sum(new.encoded.num_tokens for new, _ in kept)
        self.meter.tell("ingesting")

    def _represent(self, window: list[NewSample]) -> list[Representation | None]:
        found: list[Representation | None] = [None] * len(window)
        encoded = [new.encoded for new in window]
        for positions, parts in self.forward.representations(encoded, self.projection):
            for at, position in enumerate(positions):
                part = None if parts is None else parts[at]
                if part is not None and part.is_finite:
                    found[position] = part
                    continue
                new = window[position]
                reason = (
                    "not finite: the model gives NaN or infinity on this sample"
                    if part is not None
                    else f"out of memory: {new.encoded.num_tokens:,} tokens do not fit alone"
                )
                self.intake.quarantine(new.sample.source, new.sample.row, reason, new.sample.full_text)
            self.meter.passed(len(positions), sum(encoded[position].num_tokens for position in positions))
        return found

    def _row(self, sample_id: int, new: NewSample, part: Representation) -> dict[str, object]:
        sample = new.sample
        return {
            "id": sample_id,
            "space_id": self.space.id,
            "dataset_id": self.numbers.dataset_id,
            "content_hash": new.content_hash,
            "row": new.row,
            "key": new.key,
            "has_own_key": sample.key is not None,
            "label": sample.label,
            "text": sample.text,
            "prompt": sample.prompt,
            "response": sample.response,
            "meta": sample.meta,
            "num_tokens": new.encoded.num_tokens,
            "num_counted": new.encoded.num_counted,
            "is_truncated": new.encoded.is_truncated,
            "norm": part.norm,
            "captured": min(1.0, float(np.square(part.sketch, dtype=np.float64).sum()) / max(part.norm**2, 1e-30)),
            "loss": part.loss,
        }


def _draw(samples: Iterator[object], seed: int) -> list[Sample]:
    """A random part of the first data: an eighth, at least 256 and at most 1,024 samples (reservoir sampling)."""
    generator = random.Random(seed)
    drawn: list[tuple[float, int, Sample]] = []
    count = 0
    for sample in samples:
        if not isinstance(sample, Sample):
            continue
        count += 1
        drawn.append((generator.random(), count, sample))
        if len(drawn) >= 2 * _MAX_CALIBRATION:
            drawn = sorted(drawn)[:_MAX_CALIBRATION]
        if count >= _FIRST_ROWS:
            break
    size = min(_MAX_CALIBRATION, max(_MIN_CALIBRATION, count // 8))
    return [sample for _, _, sample in sorted(drawn)[:size]]


def _within(samples: list[EncodedSample], max_counted: int) -> list[EncodedSample]:
    """The first samples, at least one, with at most so many counted tokens: still a random draw, of all lengths."""
    ends = np.cumsum([sample.num_counted for sample in samples])
    return samples[: max(1, int(np.searchsorted(ends, max_counted, side="right")))]


def _arrays(ids: np.ndarray, parts: list[Representation]) -> SegmentArrays:
    return SegmentArrays(
        ids=ids,
        norms=np.array([part.norm for part in parts], dtype=np.float32),
        sketches=np.stack([part.sketch for part in parts]).astype(np.float32),
        factors=QuantizedFactors.concatenate([part.factors for part in parts]),
        offsets=np.cumsum([0] + [len(part.factors) for part in parts], dtype=np.int64),
    )
