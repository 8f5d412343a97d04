"""What an ingest did, and how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from curator.sources.excerpt import excerpt_of
from curator.types import BadRow

__all__ = ["IngestReport", "Meter", "OnProgress", "Progress"]


@dataclass
class IngestReport:
    """Counts of one ingest. Every row read is in exactly one of added, present, duplicates, deleted, quarantined.

    Of preference pairs, which are two samples a row, these count the samples.
    """

    dataset: str
    reading: str = ""  # what the rows were read as: "chat: 812 conversations (messages)"
    space: str = ""
    is_new_space: bool = False
    rows: int = 0
    added: int = 0
    present: int = 0  # rows the store already had
    updated: int = 0  # of those: label or metadata changed
    duplicates: int = 0  # the same text as another row
    deleted: int = 0  # deleted earlier, so not taken again
    quarantined: int = 0
    truncated: int = 0  # of the added
    tokens: int = 0  # read by the model, of the added
    num_samples: int = 0  # in the dataset afterwards
    seconds: float = 0.0
    calibration_seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # why rows were quarantined
    is_interrupted: bool = False

    def __post_init__(self) -> None:
        self._counting = Lock()  # bad rows are met by two threads

    def bad_row(self, source: str, row: int, reason: str, excerpt: str) -> BadRow:
        """A row for quarantine, counted here with its reason."""
        general = reason.split(":")[0]
        with self._counting:
            self.quarantined += 1
            self.reasons[general] = self.reasons.get(general, 0) + 1
        return BadRow(source, row, reason, excerpt_of(excerpt))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as `curator ingest --json` prints them."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Progress:
    """Where a running ingest stands."""

    phase: str  # "calibrating", "ingesting", or first "reading" where the columns told what the rows are
    rows: int
    total_rows: int | None
    samples: int  # through the model since the start, committed or not
    tokens: int
    committed: int
    waiting: int  # new samples that were read and have not been through the model
    reading: str  # what the rows are read as


OnProgress = Callable[[Progress], None]


@dataclass
class Meter:
    """Counts a running ingest and tells about it; only the thread that runs the ingest tells."""

    report: IngestReport
    total_rows: int | None
    on_progress: OnProgress
    num_new: int = 0  # samples that the store did not have: read so far, by the thread that reads
    samples: int = 0
    tokens: int = 0

    def passed(self, samples: int, tokens: int) -> None:
        """A batch has been through the model."""
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self.tell("ingesting")

    def tell(self, phase: str) -> None:
        """Reports where the ingest stands."""
        report = self.report
        waiting = max(0, self.num_new - self.samples)
        self.on_progress(
            Progress(
                phase, report.rows, self.total_rows, self.samples, self.tokens, report.added, waiting, report.reading
            )
        )
