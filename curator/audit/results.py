"""What an audit answers with: findings, worst first, and how they were made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curator.export import write_jsonl
from curator.metadata.samples import rows_by_id
from curator.query import Answering

__all__ = ["AuditResult", "Duplicate", "Finding", "Outlier", "Suspect", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sample and, in words, why it was found."""

    id: int
    key: str
    dataset: str
    label: str | None
    reason: str
    text: str
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suspect(Finding):
    """A sample that its own group does not bear out."""

    group: str
    value: float
    percentile: float  # within the group, ties counted half


@dataclass(frozen=True, kw_only=True)
class Duplicate(Finding):
    """A sample that another one, its keeper, makes superfluous."""

    keeper: int  # the id
    keeper_key: str
    is_exact: bool  # the same text
    cosine: float  # of the two sketches


@dataclass(frozen=True, kw_only=True)
class Outlier(Finding):
    """A sample far from the others of its dataset."""

    measure: str  # captured, norm or loss: the one that is farthest out
    value: float
    typical: float  # the dataset's median
    deviation: float  # robust standard deviations from it, below zero for below


@dataclass(frozen=True)
class AuditResult:
    """Findings, worst first; what is tagged, deleted or written are exactly these."""

    audit: str
    items: Sequence[Finding]
    how: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what a reader should know, in words; not part of the document

    @property
    def ids(self) -> list[int]:
        """The ids of the findings, as `tag` and `delete` take them."""
        return [item.id for item in self.items]

    def to_dict(self) -> dict[str, Any]:
        """The document {"audit", "items", "how"}."""
        return {"audit": self.audit, "items": [asdict(item) for item in self.items], "how": self.how}

    def to_pandas(self) -> Any:
        """A DataFrame, one row per finding. Needs pandas."""
        import pandas as pd  # optional: results convert where it is installed

        return pd.DataFrame([asdict(item) for item in self.items])

    def write(self, path: str | Path) -> int:
        """Writes the findings as JSON lines, whole or not at all; returns their number."""
        return write_jsonl(Path(path), (asdict(item) for item in self.items))


def rows_of(answering: Answering, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What every finding says of its sample, by id."""
    return {
        id_: {
            "id": id_,
            "key": sample.key,
            "dataset": dataset,
            "label": sample.label,
            "text": sample.full_text,
            "meta": sample.meta,
        }
        for id_, (sample, dataset) in rows_by_id(answering.session, ids).items()
    }
