"""A selection: what was taken, of what, and how."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curator.errors import UsageError
from curator.metadata.traits import Traits, traits_of
from curator.query.answer import Answering, QueryOptions
from curator.query.inputs import Query
from curator.select.choose import Candidates, Limits, best, diverse
from index.scan import RowScale, StoredRows, row_factors, scan

__all__ = ["Selection", "select"]

_NUM_BINS = 20


@dataclass(frozen=True)
class Selection:
    """The samples taken, in order of rank, and what a curator looks at before training on them."""

    ids: np.ndarray  # int64 [k]
    values: np.ndarray  # float64 [k], of the sketch
    query: dict[str, Any]
    how: dict[str, Any]
    counts: dict[str, Any]  # taken and of: samples and tokens
    groups: list[dict[str, Any]]  # by dataset and label: taken, of, tokens, mean_value of those taken
    histogram: dict[str, list[float]]  # edges [bins + 1]; taken and all [bins]
    out: str | None = None  # where it was written
    notes: list[str] = field(default_factory=list)  # what a reader should know, in words; not part of the document

    def to_dict(self) -> dict[str, Any]:
        """The document, without the samples themselves: those are what is written."""
        names = ("query", "how", "counts", "groups", "histogram", "out")
        return {name: getattr(self, name) for name in names}


def select(
    answering: Answering,
    query: Query,
    options: QueryOptions,
    limits: Limits,
    *,
    is_diverse: bool,
    seed: int,
    on_progress: Callable[[int], None],
) -> Selection:
    """Selects by the sketch's values, from one streaming scan; memory grows by some 50 bytes a sample.

    Raises UsageError for a seed below 0, and as `traits_of` does.
    """
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, got {seed}")
    started = time.perf_counter()
    prepared, description = answering.prepare(query, options.method, options.damping)
    traits = traits_of(answering.session, answering.space.id, options.where, limits.by)
    row_scale: RowScale = "inverse_norm" if prepared.is_cosine else "none"
    values = np.empty(len(traits.ids))
    at = 0
    for ids, values_nQ, norms in scan(answering.segments, prepared.search[None], allowed=traits.ids):
        values[at : at + len(ids)] = values_nQ[:, 0].astype(np.float64) * row_factors(norms, row_scale)
        at += len(ids)
    assert at == len(values), "a live sample is in a segment"
    candidates = Candidates(traits.ids, values, traits.num_tokens, traits.groups)
    if is_diverse:
        stored = StoredRows(answering.segments, row_scale)
        stored_ids = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in answering.segments)])
        taken, matched = diverse(candidates, limits, stored, stored_ids, prepared.search, seed, on_progress)
        follows = {"cosine": matched.cosine, "along": matched.along, "across": matched.across}
    else:
        taken, follows = best(candidates, limits), None
    how = {
        "space": answering.space.fingerprint,
        "method": options.method,
        "damping": options.damping if options.method == "preconditioned" else None,
        "tier": "sketch",
        "captured": prepared.captured,
        "where": options.where,
        "limits": limits.given,
        "diverse": is_diverse,
        "follows": follows,  # the summed sketches of those taken, against the query
        "seed": seed if is_diverse else None,
        "num_samples": answering.corpus.num_samples,
        "num_eligible": len(candidates),
        "seconds": time.perf_counter() - started,
    }
    counts = {
        "taken": {"samples": len(taken), "tokens": int(traits.num_tokens[taken].sum())},
        "of": {"samples": len(candidates), "tokens": int(traits.num_tokens.sum())},
    }
    return Selection(
        ids=traits.ids[taken],
        values=values[taken],
        query=description,
        how=how,
        counts=counts,
        groups=_groups(traits, values, taken),
        histogram=_histogram(values, taken),
        notes=answering.notes(
            query,
            description,
            captured=prepared.captured,
            advice="a selection goes by the sketch alone: compare its head with curator query --exact",
        ),
    )


def _groups(traits: Traits, values: np.ndarray, taken: np.ndarray) -> list[dict[str, Any]]:
    """By dataset and label, the most taken first."""
    size = len(traits.label_names)
    codes = traits.datasets * size + traits.labels
    of = np.bincount(codes, minlength=len(traits.dataset_names) * size)
    num_taken = np.bincount(codes[taken], minlength=len(of))
    tokens = np.bincount(codes[taken], traits.num_tokens[taken], minlength=len(of))
    sums = np.bincount(codes[taken], values[taken], minlength=len(of))
    return [
        {
            "dataset": traits.dataset_names[code // size],
            "label": traits.label_names[code % size],
            "taken": int(num_taken[code]),
            "of": int(of[code]),
            "tokens": int(tokens[code]),
            "mean_value": float(sums[code] / num_taken[code]) if num_taken[code] else None,
        }
        for code in np.lexsort((np.arange(len(of)), -num_taken)).tolist()
        if of[code]
    ]


def _histogram(values: np.ndarray, taken: np.ndarray) -> dict[str, list[float]]:
    """Of all values and of those taken. The outermost bins hold what lies beyond the .5th and the 99.5th percentile."""
    if not len(values):
        return {"edges": [], "all": [], "taken": []}
    low, high = np.quantile(values, [0.005, 0.995])
    edges = np.linspace(low, high, _NUM_BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    clipped = np.clip(values, edges[0], edges[-1])
    counts = [np.histogram(part, edges)[0].tolist() for part in (clipped, clipped[taken])]
    return {"edges": edges.tolist(), "all": counts[0], "taken": counts[1]}
