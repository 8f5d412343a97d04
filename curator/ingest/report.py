"""What an ingest did, and how far it is."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["IngestReport", "Meter", "OnProgress", "Progress"]


@dataclass
class IngestReport:
    """Counts of one ingest. Every row read is in exactly one of added, present, duplicates, deleted, quarantined."""

    dataset: str
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

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as `curator ingest --json` prints them."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """Where a running ingest stands."""

    phase: str  # "calibrating" or "ingesting"
    rows: int
    total_rows: int | None
    samples: int  # through the model since the start, committed or not
    tokens: int
    committed: int
    waiting: int  # new samples that were read and have not been through the model


OnProgress = Callable[[Progress], None]


@dataclass
class Meter:
    """Counts a running ingest and tells about it."""

    report: IngestReport
    total_rows: int | None
    on_progress: OnProgress
    samples: int = 0
    tokens: int = 0
    waiting: int = 0

    def passed(self, samples: int, tokens: int) -> None:
        """A batch has been through the model."""
        self.samples, self.tokens, self.waiting = self.samples + samples, self.tokens + tokens, self.waiting - samples
        self.tell("ingesting")

    def tell(self, phase: str) -> None:
        """Reports where the ingest stands."""
        report = self.report
        self.on_progress(
            Progress(phase, report.rows, self.total_rows, self.samples, self.tokens, report.added, self.waiting)
        )
