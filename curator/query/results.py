"""What a query answers with: the JSON contract of the Python API, the command line and REST."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["How", "QueryResult", "ScoredSample", "TokenValue"]


@dataclass(frozen=True)
class TokenValue:
    """A counted token of a sample and its part of the sample's value."""

    text: str
    value: float


@dataclass(frozen=True)
class ScoredSample:
    """A sample with its value for a query. `percentile`: where its value stands among the
    sketch values of the corpus, 0 to 100, ties counted half."""

    id: int
    key: str
    dataset: str
    label: str | None
    value: float
    percentile: float
    text: str
    meta: dict[str, Any]
    tokens: list[TokenValue] | None = None  # the text's last counted tokens in order; only when asked for

    def to_dict(self) -> dict[str, Any]:
        """Plain types; `tokens` appears only when they were asked for."""
        plain = asdict(self)
        if self.tokens is None:
            del plain["tokens"]
        return plain


@dataclass(frozen=True)
class How:
    """How an answer was made, and from what."""

    space: str
    method: str
    damping: float | None
    tier: str  # sketch, factors or exact: where the values of the items shown come from
    candidates: int  # samples that were looked at closer than the sketch
    rare_candidates: int  # of those, what rare tokens shared with the query have added to what the sketch found
    index: dict[str, Any]
    num_samples: int  # in the space, not deleted
    num_eligible: int  # of those, what `where` admits
    where: str | None
    captured: float  # share of the query's energy ||G||^2 that the sketch sees
    trust: dict[str, Any] | None  # by end, where it was asked for: see curator.query.trust.Trust
    percentiles: str  # among what: all sketch values, or those of random samples
    seconds: float


@dataclass(frozen=True)
class QueryResult:
    """One answer: helpful from the highest value down, harmful from the lowest up, ties by id."""

    query: dict[str, Any]
    helpful: list[ScoredSample]
    harmful: list[ScoredSample]
    how: How
    notes: list[str] = field(default_factory=list)  # what a reader should know, in words; not part of the document

    def to_dict(self) -> dict[str, Any]:
        """The document {"query", "helpful", "harmful", "how"}."""
        return {
            "query": self.query,
            "helpful": [item.to_dict() for item in self.helpful],
            "harmful": [item.to_dict() for item in self.harmful],
            "how": asdict(self.how),
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"end": end, "rank": rank, **item.to_dict()}
            for end, items in (("helpful", self.helpful), ("harmful", self.harmful))
            for rank, item in enumerate(items, start=1)
        ]

    def to_pandas(self) -> Any:
        """A DataFrame, one row per item: end, rank and the item's fields. Needs pandas."""
        import pandas as pd  # optional: results convert where it is installed

        return pd.DataFrame(self._rows())

    def to_arrow(self) -> Any:
        """A pyarrow Table, one row per item; metadata as JSON text, since its fields differ between samples."""
        import json

        import pyarrow as pa

        rows = [{**row, "meta": json.dumps(row["meta"], ensure_ascii=False)} for row in self._rows()]
        return pa.Table.from_pylist(rows)
