"""Rows to new samples: what the store already has is recognised before anything is tokenised.

Rows come in portions, so that the database is asked once for many; order is kept throughout. New samples leave in
windows, one for each segment. All of this runs ahead of the model in a thread of its own, with a session of its own;
what the commits have put into the database meanwhile comes back through `committed`.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import NotFoundError, UsageError
from curator.image_files import ImageFiles
from curator.ingest.feed import Feed
from curator.ingest.report import Meter
from curator.metadata.row_numbers import RowNumbers, RowsRead
from curator.metadata.samples import by_hash, key_holders
from curator.models import Encoder
from curator.sources import SIDES, Source, content_hash, read_rows, to_samples
from curator.types import BadRow, EncodedSample, Fields, Row, Sample

__all__ = ["Intake", "NewSample", "Window", "portions", "read_samples", "require_encodable", "require_usable"]

_PORTION, _PORTION_CHARACTERS = 512, 4_000_000
_PEEK, _PEEK_AT_IMAGES = 1_000, 64
_FEW = 100
_ROWS_BETWEEN_COMMITS = 20_000  # of rows that bring nothing new
Item = TypeVar("Item", bound=Sample | BadRow)


@dataclass(frozen=True)
class NewSample:
    """A sample that the store does not have, ready for the model."""

    sample: Sample
    encoded: EncodedSample
    content_hash: bytes
    row: int  # the dataset's row number
    key: str
    place: int  # of its row among all rows of the ingest
    replaces: int | None = None  # the id of the version of its key before it
    forgets: int | None = None  # the id of a compacted sample of the same content


@dataclass(frozen=True)
class Window:
    """The samples of one segment, and the rows that its commit remembers; without samples only these."""

    samples: list[NewSample]
    read: RowsRead


def read_samples(
    sources: Sequence[Source], fields: Fields, broken: list[UsageError | NotFoundError]
) -> Iterator[Sample | BadRow]:  # fmt: skip
    """The samples and bad rows of all sources, in order; what keeps one from being read is appended to `broken`."""
    for source in sources:
        try:
            for row in read_rows(source, fields.raw):
                found = to_samples(row, fields) if isinstance(row, Row) else row
                if isinstance(found, BadRow):
                    yield found
                else:
                    yield from found
        except (UsageError, NotFoundError) as error:
            broken.append(error)


def require_usable(sources: Sequence[Source], fields: Fields) -> list[Sample]:
    """The first samples. Raises UsageError when none of the first rows is usable: a wrong column, not some bad rows."""
    broken: list[UsageError | NotFoundError] = []
    peek = _PEEK if fields.image is None else _PEEK_AT_IMAGES
    first = list(itertools.islice(read_samples(sources, fields, broken), peek))
    if not first:
        if broken:
            raise broken[0]
        more = f" and {len(sources) - 1} more files" if len(sources) > 1 else ""
        raise UsageError(f"no rows in {sources[0]}{more}")
    bad = [item for item in first if isinstance(item, BadRow)]
    if len(bad) == len(first):
        reasons = [item.reason for item in bad]
        most = max(set(reasons), key=reasons.count)
        raise UsageError(
            f"none of the first {len(first):,} rows of {sources[0].name} is usable: {most}; "
            "choose columns with --text-field, --prompt-field and --response-field, or --messages-field"
        )
    if fields.label is not None and all(isinstance(item, BadRow) or item.label is None for item in first):
        raise UsageError(
            f"none of the first {len(first):,} rows of {sources[0].name} has a label in {fields.label!r}; "
            "correct --label-field, or leave it out"
        )
    return [item for item in first if isinstance(item, Sample)]


def require_encodable(samples: Sequence[Sample], encoder: Encoder) -> None:
    """Raises UsageError where the samples are conversations, and the chat template can do nothing with any of them."""
    chats = [sample for sample in samples if sample.messages is not None][:_FEW]
    if not chats:
        return
    reasons = [item for item in encoder.encode(chats) if isinstance(item, str)]
    if len(reasons) == len(chats):
        raise UsageError(
            f"none of the first {len(chats):,} conversations is usable: {max(set(reasons), key=reasons.count)}"
        )


@dataclass(frozen=True)
class _Met:
    """A sample that was read: its row's number in the dataset, its hash, its place among all rows of the ingest."""

    sample: Sample
    number: int
    digest: bytes
    place: int
    forgets: int | None = None


@dataclass
class Intake:
    """Sorts rows into new, replaced, present, duplicate, deleted and bad, and counts each in the report."""

    session: Session
    feed: Feed
    encoder: Encoder
    images: ImageFiles
    numbers: RowNumbers
    meter: Meter
    dataset: str
    has_label: bool  # whether a label column was chosen; if not, the labels of known samples stay
    first_new_id: int  # the samples of this run have ids from here on
    committed: deque[list[NewSample]] = field(default_factory=deque)  # filled by those who commit, in any thread
    _pending_hashes: set[bytes] = field(default_factory=set)  # of samples that are not known to be committed
    _pending_keys: set[str] = field(default_factory=set)
    _renumbered: dict[int, int] = field(default_factory=dict)  # of preference pairs: both samples get one new number

    def __post_init__(self) -> None:
        self.report = self.meter.report
        self._num_begun = 0
        self._num_items = 0  # samples and bad rows, where a preference pair is two
        self._passed_over = np.zeros((0, 2), dtype=np.int64)
        self._is_met = np.zeros(self.first_new_id, dtype=bool)  # by id: known samples that a row of this run was

    def windows(self, *, most_samples: int, most_tokens: int) -> Iterator[Window]:
        """Windows of new samples, cut by the new samples alone; what was read of a file that breaks off is kept."""
        samples: list[NewSample] = []
        tokens, rows_at_cut = 0, 0
        for portion in portions(self.feed.items()):
            found = self._sort(portion)
            for at, new in enumerate(found):
                samples.append(new)
                tokens += new.encoded.num_tokens
                if len(samples) >= most_samples or tokens >= most_tokens:
                    yield self._window(samples, found[at + 1 : at + 2])
                    samples, tokens, rows_at_cut = [], 0, self.report.rows
            if self.report.rows - rows_at_cut >= _ROWS_BETWEEN_COMMITS:
                # The open window stays open: where it is cut must depend on its samples only.
                yield self._window([], samples)
                rows_at_cut = self.report.rows
        yield self._window(samples, [])

    def _window(self, samples: list[NewSample], waiting: Sequence[NewSample]) -> Window:
        """A window, with bookmarks before the first sample that waits for a later one."""
        place = waiting[0].place if waiting else self._num_items
        return Window(samples, self.numbers.take(self.feed.reached(place)))

    def _quarantine(self, source: str, row: int, reason: str, excerpt: str = "") -> None:
        self.numbers.bad.append(self.report.bad_row(source, row, reason, excerpt))

    def _forget_committed(self) -> None:
        """What is in the database is found there; a snapshot of it begins after this, so nothing falls between."""
        while self.committed:
            for new in self.committed.popleft():
                self._pending_hashes.discard(new.content_hash)
                self._pending_keys.discard(new.key)
        self.session.rollback()

    def _sort(self, portion: Sequence[Sample | BadRow]) -> list[NewSample]:
        self._forget_committed()
        first = self._num_items
        self._num_items += len(portion)
        numbers = [self.numbers.number(item.source, item.row) for item in portion]
        self.report.rows += sum(not _is_second(item) for item in portion)
        samples = []
        for place, (item, number) in enumerate(zip(portion, numbers, strict=True), start=first):
            if isinstance(item, BadRow):
                self._quarantine(item.source, item.row, item.reason, item.excerpt)
            else:
                samples.append(_Met(item, number, content_hash(item), place))
        new = self._settle_keys(self._encode(self._drop_known(samples)))
        self.meter.num_new += len(new)
        return new

    def _drop_known(self, samples: list[_Met]) -> list[_Met]:
        """Those that have to go through the model; every other one is counted as what it is."""
        held = by_hash(self.session, self.numbers.space_id, self.numbers.dataset_id, [met.digest for met in samples])
        unknown: list[_Met] = []
        claimed: set[str | None] = set()  # keys of those before: the first row of a key counts
        for met in samples:
            known = held.get(met.digest)
            if known is None:
                if met.digest in self._pending_hashes:
                    self.report.duplicates += 1
                    continue
                self._pending_hashes.add(met.digest)
                unknown.append(met)
                claimed.add(met.sample.key)
            elif known.id >= self.first_new_id or self._is_met[known.id]:
                self.report.duplicates += 1
            elif known.deleted_at is not None and known.replaced_by is None:
                self.report.deleted += 1
            elif met.sample.key is not None and (met.sample.key in claimed or met.sample.key in self._pending_keys):
                self._refuse_key(met.sample)
            elif known.replaced_by is not None:
                unknown += self._bring_back(met, known)
            else:
                self._is_met[known.id] = True
                self.report.present += 1
                self._update(met.sample, known)
        return unknown

    def _update(self, sample: Sample, known: sa.Row[Any]) -> None:
        label = sample.label if self.has_label else known.label
        if (known.label, known.meta) != (label, sample.meta):
            self.numbers.updates.append({"id": known.id, "label": label, "meta": sample.meta})
            self.report.updated += known.replaced_by is None

    def _bring_back(self, met: _Met, known: sa.Row[Any]) -> list[_Met]:
        """A row is what it was in an older version: that answers again, or is returned to be computed again."""
        key = met.sample.key
        assert key is not None, "only samples with keys of their own are replaced"
        holder = self._holders([key]).get(key)
        if self._is_refused(key, holder):
            self._refuse_key(met.sample)
            return []
        if known.segment_id is None:
            self._pending_hashes.add(met.digest)
            return [replace(met, forgets=known.id)]
        self._pending_keys.add(key)  # for the rest of this ingest
        self._is_met[known.id] = True
        self.numbers.replaced.append((None if holder is None else holder.id, known.id))
        self.report.replaced += 1
        self._update(met.sample, known)
        return []

    def _encode(self, samples: list[_Met]) -> list[NewSample]:
        new = []
        encoded = self.encoder.encode([met.sample for met in samples])
        for met, result in zip(samples, encoded, strict=True):
            sample = met.sample
            if isinstance(result, str):
                self._pending_hashes.discard(met.digest)
                self._quarantine(sample.source, sample.row, result, sample.full_text)
                continue
            if sample.images:  # from here on their bytes are in the store, and not in memory
                sample = self.images.put(sample)
                result = replace(result, images=sample.images)
            key = self._key(sample, met.number)
            new.append(NewSample(sample, result, met.digest, met.number, key, met.place, forgets=met.forgets))
        return new

    def _key(self, sample: Sample, number: int) -> str:
        """The user's own, or one by the row's number; those of a pair say which one it is."""
        if sample.key is not None:
            return sample.key
        return f"{self.dataset}:{number}" + (f"/{sample.pair[1]}" if sample.pair else "")

    def _settle_keys(self, samples: list[NewSample]) -> list[NewSample]:
        """A key names one live sample. Another content under the user's key is a new version, unless that key was met
        in this ingest already: then it is refused. A row without one gets a fresh number."""
        holders = self._holders([new.key for new in samples])
        kept = []
        for new in samples:
            holder = holders.get(new.key)
            if new.sample.key is not None:
                if self._is_refused(new.key, holder):
                    self._pending_hashes.discard(new.content_hash)
                    self._refuse_key(new.sample)
                    continue
                if holder is not None:
                    new = replace(new, replaces=holder.id)
            elif holder is not None or new.key in self._pending_keys:
                # The row's number was another row's before: rows were inserted above it, or its text has changed.
                number = self._renumbered.get(new.row) or self.numbers.fresh()
                if new.sample.pair:
                    self._renumbered[new.row] = number
                new = replace(new, row=number, key=self._key(new.sample, number))
            self._pending_keys.add(new.key)
            kept.append(new)
        return kept

    def _holders(self, keys: list[str]) -> dict[str, sa.Row[Any]]:
        return key_holders(self.session, self.numbers.space_id, self.numbers.dataset_id, keys)

    def _is_refused(self, key: str, holder: sa.Row[Any] | None) -> bool:
        """Whether another row of this ingest has the key: one that was read, or one that was known and not read."""
        if key in self._pending_keys:
            return True
        if holder is None:
            return False
        is_met = holder.id >= self.first_new_id or self._is_met[holder.id] or not holder.has_own_key
        return bool(is_met) or self._is_unread(holder.row)

    def _is_unread(self, number: int) -> bool:
        """Whether a row of the dataset is one of those that this ingest knew and passed over."""
        if self._num_begun != len(self.feed.unread):
            self._num_begun = len(self.feed.unread)
            self._passed_over = np.array(self.numbers.before(self.feed.unread), dtype=np.int64).reshape(-1, 2)
        first, last = self._passed_over.T
        return bool(((first <= number) & (number < last)).any())

    def _refuse_key(self, sample: Sample) -> None:
        reason = (
            f"key taken: {sample.key!r} is another row of these data, or of dataset {self.dataset} by its number; "
            "give every row an id of its own, or choose another --id-field"
        )
        self._quarantine(sample.source, sample.row, reason, sample.full_text)


def _is_second(item: Sample | BadRow) -> bool:
    """Whether it is of the row before it: the second one of a preference pair."""
    return isinstance(item, Sample) and item.pair is not None and item.pair[1] == SIDES[1]


def portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Runs of up to 512 items and 4 million characters, or 16 million bytes of images: what is looked up at once."""
    portion: list[Item] = []
    characters = 0
    for item in items:
        portion.append(item)
        characters += _weight(item) if isinstance(item, Sample) else 0
        if len(portion) == _PORTION or characters >= _PORTION_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _weight(sample: Sample) -> int:
    return len(sample.full_text) + sum(len(image.data) // 4 for image in sample.images if image.data is not None)
