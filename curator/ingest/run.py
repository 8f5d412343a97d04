"""Ingest: plan, calibrate, then forward passes segment by segment, one commit each.

Reading, the model and writing overlap: rows are encoded ahead of the model (ahead.py, intake.py) and segments are
written and committed behind it (segment_writer.py), each in a thread, or the model on several devices (workers.py).

Killed anywhere, the store holds exactly the committed segments; the same command takes up after the last one. Segments
are cut by the new samples themselves, so that a resumed ingest makes the same segments as an uninterrupted one.
"""

import random
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import LockedError, NotFoundError, UsageError
from curator.ingest.ahead import ahead
from curator.ingest.feed import Feed, reading_of, survey
from curator.ingest.intake import Intake, Window, portions, read_samples, require_encodable, require_usable
from curator.ingest.report import IngestReport, Meter, OnProgress
from curator.ingest.segment_writer import SegmentWriter
from curator.ingest.watching import Watching
from curator.ingest.workers import Local, Recipe, Wait, Workers
from curator.metadata.bookmarks import bookmarks_of, write_bookmarks
from curator.metadata.commits import next_sample_id
from curator.metadata.row_numbers import RowNumbers
from curator.metadata.spaces import dataset_named, known_fields
from curator.metadata.tables import Dataset, Space
from curator.metadata.tables import Sample as SampleRow
from curator.models import OnLong, Positions
from curator.sources import Source, check_fields, count_rows, describe, is_named, settle_fields, shape_of
from curator.space import (
    LoadedModel,
    SpaceOptions,
    add_space,
    existing_space,
    load_for_ingest,
    space_without_loading,
)
from curator.store import PROJECTION_FILE, Store
from curator.types import EncodedSample, Fields, Sample
from curator.value import DEFAULT_BATCH_TOKENS, Forward, Ranks, calibrate
from curator.value.calibrate import affordable_tokens

__all__ = ["IngestOptions", "ingest"]

Broken = dict[str, UsageError | NotFoundError]

_FIRST_ROWS = 100_000  # what calibration samples are drawn from
_MIN_CALIBRATION, _MAX_CALIBRATION = 256, 1024


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
    reread: bool = False  # also what is known and has not changed

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
    sources: Sequence[Source],
    *,
    dataset: str,
    model: str | None,
    revision: str | None = None,
    adapter: str | None = None,
    fields: Fields,
    options: IngestOptions,
    on_progress: OnProgress = lambda progress: None,
    watching: Watching | None = None,
) -> IngestReport:
    """Adds the rows of `sources` that the store does not have. Raises before the first write when nothing is usable,
    and at the end for a source that could not be read, unless it is watched."""
    if not dataset.strip() or len(dataset) > 200 or not dataset.isprintable():
        raise UsageError(f"--dataset must be a name of 1 to 200 printable characters, got {dataset[:50]!r}")
    started = time.perf_counter()
    report = IngestReport(dataset)
    with store.session() as session:
        known = [other for name, other in known_fields(session) if name == dataset]
    for candidate in _readings(fields, known):
        if _is_all_known(store, sources, model, revision, adapter, candidate, options, report):
            report.reading = describe(candidate)
            report.seconds = time.perf_counter() - started
            return report
    watching = watching or Watching()
    was_named = is_named(fields)
    fields = settle_fields(sources, fields, known)
    report.reading = describe(fields)
    meter = Meter(report, None, on_progress)
    first = [] if watching.is_usable else require_usable(sources, fields)
    if not was_named:  # what was recognised is said aloud
        meter.tell("reading")
    _ingest(store, sources, model, revision, adapter, fields, options, meter, watching, first)
    report.reading = describe(fields, report.rows)
    report.seconds = time.perf_counter() - started
    return report


def _readings(fields: Fields, known: Sequence[Fields]) -> list[Fields]:
    """What the columns may have been taken for before, told without reading a row."""
    if is_named(fields):
        return [check_fields(fields)]
    alike = [other for other in known if fields.shape in (None, shape_of(other))]
    return [replace(other, id=fields.id, label=fields.label) for other in alike]


def _ingest(
    store: Store,
    sources: Sequence[Source],
    model: str | None,
    revision: str | None,
    adapter: str | None,
    fields: Fields,
    options: IngestOptions,
    meter: Meter,
    watching: Watching,
    first: Sequence[Sample],
) -> None:
    report = meter.report
    broken: Broken = {}
    with store.writing(), store.session() as session:
        try:
            loaded = watching.loaded or _load(session, model, revision, adapter, options)
            if "," not in options.device:  # the workers of several devices load models of their own
                watching.loaded = loaded
            require_encodable(first, loaded.encoder)
            space = existing_space(session, loaded)
            if space is None:
                space = _new_space(store, session, loaded, sources, fields, options, meter)
            watching.is_usable = True
            session.commit()
            broken = _run(store, loaded, space, sources, fields, options, meter, watching.growing)
        except KeyboardInterrupt:
            session.rollback()
            report.is_interrupted = True
        report.num_samples = _count(session, report.dataset)
    report.broken = {source: str(error) for source, error in broken.items()}
    if broken and not watching.is_round:
        raise next(iter(broken.values()))


def _is_all_known(
    store: Store,
    sources: Sequence[Source],
    model: str | None,
    revision: str | None,
    adapter: str | None,
    fields: Fields,
    options: IngestOptions,
    report: IngestReport,
) -> bool:
    """Whether no source holds anything new, told without loading the model; the report then says so."""
    with store.session() as session:
        space = space_without_loading(session, model, revision, adapter, options.space)
        dataset = session.scalars(sa.select(Dataset).where(Dataset.name == report.dataset)).first()
        if space is None or dataset is None or options.reread:
            return False
        reading = reading_of(fields, options.on_long)
        known = bookmarks_of(session, space.id, dataset.id, reading)
        if any(source.location not in known for source in sources):
            return False
        ahead = survey(sources, known)
        if not all(one.is_known for one in ahead):
            return False
        report.space = space.fingerprint
        report.unread = sum(one.start.row for one in ahead)
        report.unread_sources = len(ahead)
        report.num_samples = _count(session, report.dataset)
        restamped = {one.source.location: one.bookmark() for one in ahead if one.is_restamped}
        if restamped:
            with suppress(LockedError), store.writing():  # the next ingest would only look twice
                write_bookmarks(session, space.id, dataset.id, reading, restamped)
                session.commit()
        return True


def _load(
    session: Session, model: str | None, revision: str | None, adapter: str | None, options: IngestOptions
) -> LoadedModel:
    spaces = session.scalars(sa.select(Space)).all()
    loaded = load_for_ingest(
        model, revision, options.space, adapter=adapter, device=options.device.split(",")[0], known_spaces=spaces
    )
    loaded.encoder.on_long = options.on_long
    return loaded


def _new_space(
    store: Store,
    session: Session,
    loaded: LoadedModel,
    sources: Sequence[Source],
    fields: Fields,
    options: IngestOptions,
    meter: Meter,
) -> Space:
    """Calibrates on a random part of the first data and commits the space."""
    started = time.perf_counter()
    drawn = _draw(read_samples(sources, fields, []), options.seed)
    results = [item for portion in portions(drawn) for item in loaded.encoder.encode(portion)]
    encoded = [item for item in results if isinstance(item, EncodedSample)]
    if not encoded:
        raise UsageError(f"no row of {sources[0].name} is usable: {results[0]}")
    meter.tell("calibrating")
    head = loaded.lm.head
    affordable = _within(encoded, affordable_tokens(head))
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


def _run(
    store: Store,
    loaded: LoadedModel,
    space: Space,
    sources: Sequence[Source],
    fields: Fields,
    options: IngestOptions,
    meter: Meter,
    growing: AbstractSet[str],
) -> Broken:
    """Three at once: one thread reads and encodes ahead, the model computes, one thread writes and commits behind."""
    report = meter.report
    report.space = space.fingerprint
    reading = reading_of(fields, options.on_long)
    with store.session() as session:
        known = dataset_named(session, report.dataset)
        known.fields = {role: name for role, name in asdict(fields).items() if name is not None}
        numbers = RowNumbers.load(session, space.id, known, reading)
        first_new_id = next_sample_id(session)
        read_before = {} if options.reread else bookmarks_of(session, space.id, known.id, reading)
        ahead_of = survey(sources, read_before)
        session.commit()  # the dataset's row: a transaction left open would lock the writer out
    meter.total_rows = count_rows((one.source, one.start) for one in ahead_of if not one.is_known)
    feed = Feed(ahead_of, fields, report, growing)

    def windows() -> Generator[Window, None, None]:
        with store.session() as session:  # of the thread that runs this
            intake = Intake(
                session,
                feed,
                loaded.encoder,
                numbers,
                meter,
                report.dataset,
                fields.label is not None,
                first_new_id,
                writer.committed,
            )
            yield from intake.windows(most_samples=options.segment_samples, most_tokens=options.segment_tokens)

    writer = SegmentWriter(store, space.id, numbers.dataset_id, meter.report)
    with writer, _model(store, loaded, space, options, meter) as model, closing(ahead(windows())) as read:
        under_way: deque[tuple[Window, Wait]] = deque()
        for window in read:
            under_way.append((window, model.submit([new.encoded for new in window.samples])))
            while len(under_way) >= model.capacity:
                done, wait = under_way.popleft()
                writer.write(done, wait())
            meter.tell("ingesting")
        while under_way:
            done, wait = under_way.popleft()
            writer.write(done, wait())
    meter.tell("ingesting")
    return feed.broken


@contextmanager
def _model(
    store: Store, loaded: LoadedModel, space: Space, options: IngestOptions, meter: Meter
) -> Iterator[Local | Workers]:
    devices = options.device.split(",")
    if len(devices) == 1:
        projection = store.projection(space).to(loaded.lm.device)
        yield Local(Forward(loaded.lm, options.batch_tokens), projection, meter.passed)
        return
    path = store.root / "spaces" / space.fingerprint / PROJECTION_FILE
    recipe = Recipe(loaded.checkpoint, loaded.recipe["dtype"], path, options.batch_tokens)
    loaded.release()  # the workers have models of their own
    with Workers(devices, recipe, meter.passed) as workers:
        yield workers


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
