"""Rows to new samples: what the store already has is recognised before anything is tokenised.

Rows come in portions, so that the database is asked once for many; order is kept throughout. New samples leave in
windows, one for each segment. All of this runs ahead of the model in a thread of its own, with a session of its own;
what the commits have put into the database meanwhile comes back through `committed`.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from sqlalchemy.orm import Session

from curator.errors import UsageError
from curator.image_files import ImageFiles
from curator.ingest.report import Meter
from curator.metadata.row_numbers import RowNumbers, RowsRead
from curator.metadata.samples import by_hash, keys_taken
from curator.models import Encoder
from curator.sources import SIDES, content_hash, read_rows, to_samples
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


@dataclass(frozen=True)
class Window:
    """The samples of one segment, and the rows that its commit remembers; without samples only these."""

    samples: list[NewSample]
    read: RowsRead


def read_samples(paths: Sequence[Path], fields: Fields) -> Iterator[Sample | BadRow]:
    """The samples and bad rows of all files, in order."""
    for path in paths:
        for row in read_rows(path, fields.raw):
            found = to_samples(row, fields) if isinstance(row, Row) else row
            if isinstance(found, BadRow):
                yield found
            else:
                yield from found


def require_usable(paths: Sequence[Path], fields: Fields) -> list[Sample]:
    """The first samples. Raises UsageError when none of the first rows is usable: a wrong column, not some bad rows."""
    first = list(itertools.islice(read_samples(paths, fields), _PEEK if fields.image is None else _PEEK_AT_IMAGES))
    if not first:
        raise UsageError(f"no rows in {paths[0]}" + (f" and {len(paths) - 1} more files" if len(paths) > 1 else ""))
    bad = [item for item in first if isinstance(item, BadRow)]
    if len(bad) == len(first):
        reasons = [item.reason for item in bad]
        most = max(set(reasons), key=reasons.count)
        raise UsageError(
            f"none of the first {len(first):,} rows of {paths[0].name} is usable: {most}; "
            "choose columns with --text-field, --prompt-field and --response-field, or --messages-field"
        )
    if fields.label is not None and all(isinstance(item, BadRow) or item.label is None for item in first):
        raise UsageError(
            f"none of the first {len(first):,} rows of {paths[0].name} has a label in {fields.label!r}; "
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


@dataclass
class Intake:
    """Sorts rows into new, present, duplicate, deleted and bad, and counts each in the report."""

    session: Session
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
        self._is_met = np.zeros(self.first_new_id, dtype=bool)  # by id: known samples that a row of this run was

    def windows(
        self, items: Iterable[Sample | BadRow], *, most_samples: int, most_tokens: int
    ) -> Iterator[Window]:  # fmt: skip
        """Windows of new samples, cut by the new samples alone; what was read of a file that breaks off is kept."""
        samples: list[NewSample] = []
        tokens, rows_at_cut = 0, self.report.rows
        try:
            for portion in portions(items):
                for new in self._sort(portion):
                    samples.append(new)
                    tokens += new.encoded.num_tokens
                    if len(samples) >= most_samples or tokens >= most_tokens:
                        yield Window(samples, self.numbers.take())
                        samples, tokens, rows_at_cut = [], 0, self.report.rows
                if self.report.rows - rows_at_cut >= _ROWS_BETWEEN_COMMITS:
                    # The open window stays open: where it is cut must depend on its samples only.
                    yield Window([], self.numbers.take())
                    rows_at_cut = self.report.rows
        except UsageError:
            yield Window(samples, self.numbers.take())
            raise
        yield Window(samples, self.numbers.take())

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
        numbers = [self.numbers.number(item.source, item.row) for item in portion]
        self.report.rows += sum(not _is_second(item) for item in portion)
        samples = []
        for item, number in zip(portion, numbers, strict=True):
            if isinstance(item, BadRow):
                self._quarantine(item.source, item.row, item.reason, item.excerpt)
            else:
                samples.append((item, number, content_hash(item)))
        new = self._settle_keys(self._encode(self._drop_known(samples)))
        self.meter.num_new += len(new)
        return new

    def _drop_known(self, samples: list[tuple[Sample, int, bytes]]) -> list[tuple[Sample, int, bytes]]:
        held = by_hash(self.session, self.numbers.space_id, self.numbers.dataset_id, [h for _, _, h in samples])
        unknown = []
        for sample, number, digest in samples:
            known = held.get(digest)
            if known is None:
                if digest in self._pending_hashes:
                    self.report.duplicates += 1
                else:
                    self._pending_hashes.add(digest)
                    unknown.append((sample, number, digest))
            elif known.deleted_at is not None:
                self.report.deleted += 1
            elif known.id >= self.first_new_id or self._is_met[known.id]:
                self.report.duplicates += 1
            else:
                self._is_met[known.id] = True
                self.report.present += 1
                label = sample.label if self.has_label else known.label
                if (known.label, known.meta) != (label, sample.meta):
                    self.numbers.updates.append({"id": known.id, "label": label, "meta": sample.meta})
                    self.report.updated += 1
        return unknown

    def _encode(self, samples: list[tuple[Sample, int, bytes]]) -> list[NewSample]:
        new = []
        encoded = self.encoder.encode([sample for sample, _, _ in samples])
        for (sample, number, digest), result in zip(samples, encoded, strict=True):
            if isinstance(result, str):
                self._pending_hashes.discard(digest)
                self._quarantine(sample.source, sample.row, result, sample.full_text)
                continue
            if sample.images:  # from here on their bytes are in the store, and not in memory
                sample = self.images.put(sample)
                result = replace(result, images=sample.images)
            new.append(NewSample(sample, result, digest, number, self._key(sample, number)))
        return new

    def _key(self, sample: Sample, number: int) -> str:
        """The user's own, or one by the row's number; those of a pair say which one it is."""
        if sample.key is not None:
            return sample.key
        return f"{self.dataset}:{number}" + (f"/{sample.pair[1]}" if sample.pair else "")

    def _settle_keys(self, samples: list[NewSample]) -> list[NewSample]:
        """A key names one live sample: another one with the user's key is refused, one without gets a fresh number."""
        keys = [new.key for new in samples]
        taken = keys_taken(self.session, self.numbers.space_id, self.numbers.dataset_id, keys)
        kept = []
        for new in samples:
            if new.key in taken or new.key in self._pending_keys:
                if new.sample.key is not None:
                    self._refuse_key(new)
                    continue
                # The row's number was another row's before: rows were inserted above it, or its text has changed.
                number = self._renumbered.get(new.row) or self.numbers.fresh()
                if new.sample.pair:
                    self._renumbered[new.row] = number
                new = replace(new, row=number, key=self._key(new.sample, number))
            self._pending_keys.add(new.key)
            kept.append(new)
        return kept

    def _refuse_key(self, new: NewSample) -> None:
        self._pending_hashes.discard(new.content_hash)
        reason = (
            f"key taken: {new.key!r} is another sample of dataset {self.dataset}; "
            "delete that one first, or choose another --id-field"
        )
        self._quarantine(new.sample.source, new.sample.row, reason, new.sample.full_text)


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
