"""Answers a query: search the index at both ends, rescore the candidates, say how it was done.

No training sample passes through the model, unless the exact tier is asked for, and then only the candidates.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sqlalchemy.orm import Session

from curator.errors import CuratorError, EmptyQueryError, IntegrityError, UsageError
from curator.metadata.samples import count_elsewhere, deleted_ids, live_ids, rows_by_id
from curator.metadata.tables import Space
from curator.models import CountedHidden
from curator.query.indexes import SpaceIndexes
from curator.query.inputs import Query
from curator.query.percentiles import Corpus, Distribution, Ends
from curator.query.results import How, QueryResult, ScoredSample, TokenValue
from curator.query.saved import represent_saved
from curator.query.trust import Trust, bounds_of, check_end
from curator.space import ModelOfSpace
from curator.store import Store
from curator.types import EncodedSample, Sample
from curator.value import (
    DEFAULT_DAMPING,
    METHODS,
    Forward,
    Method,
    PreparedQuery,
    QueryGradient,
    QueryRepresentation,
    prepare,
)
from curator.value.represent import MAX_ELEMENTS
from index.factors import QuantizedFactors, token_values
from index.projection import Projection
from index.rare_scan import rare_candidates
from index.scan import RowScale, row_factors
from index.segment import Segment, gather_factors

__all__ = ["Answering", "QueryOptions"]

_LOW_CAPTURED = 0.5
RARE_SHARE = 0.25  # of `rerank`: candidates at each end that rare tokens add


@dataclass(frozen=True)
class QueryOptions:
    """How to answer."""

    top: int = 10
    harmful: int = 10
    where: str | None = None
    method: Method = "raw"
    damping: float = DEFAULT_DAMPING
    rerank: int = 100  # candidates of the sketch at each end that are rescored from their factors; 0: none
    exact: bool = False  # rescore the candidates by running them through the model
    tokens: bool = False  # split the value of each item over its tokens
    trust: int = 0  # samples to run at random, half for each end, to tell how many of the true best are shown
    certify: int = 0  # or samples to run at most at each end until the answer is certain

    @property
    def is_run(self) -> bool:
        """Whether samples are run through the model for it."""
        return bool(self.exact or self.trust or self.certify)

    def __post_init__(self) -> None:
        if self.trust and self.certify:
            raise UsageError("--trust and --certify exclude each other: random samples, or the highest bounds first")
        for name in ("top", "harmful", "rerank", "trust", "certify"):
            value = getattr(self, name)
            if not 0 <= value <= 10_000:
                raise UsageError(f"--{name} must be 0 to 10,000, got {value}; for the whole corpus use: curator values")
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not known; use one of {', '.join(METHODS)}")
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping must be above 0 and finite, got {self.damping:g}")


@dataclass(frozen=True)
class _Found:
    """The candidates of both ends, and how they were found."""

    values: dict[int, float]  # by id: from factors, or of the sketch where rerank is 0
    index: dict[str, Any]
    ends: Ends  # the sketch's values at both ends
    num_rare: int = 0  # candidates that a rare token shared with the query has added


class Answering:
    """Everything that queries of one space share: model, projection, segments, index. Built once, asked often."""

    def __init__(
        self,
        store: Store,
        session: Session,
        space: Space,
        model: ModelOfSpace,
        former: "Answering | None" = None,
    ):
        """`former` answered before the store changed: index shards that still fit are taken over from it."""
        self.store, self.session, self.space, self.model = store, session, space, model
        self.projection: Projection = store.projection(space).to(model.device)
        self.segments = store.segments(session, space.id)
        self.deleted = deleted_ids(session, space.id)
        self.corpus = Corpus(self.segments, self.deleted)
        self.num_elsewhere = count_elsewhere(session, space.id)
        self._forward: Forward | None = None
        self._first_ids = np.array([s.ids[0] for s in self.segments if s.num_samples], dtype=np.int64)
        self.indexes: SpaceIndexes = SpaceIndexes(
            store, space, self.segments, model.device, former.indexes if former else None
        )

    @property
    def forward(self) -> Forward:
        """The forward pass; the model is loaded by the first."""
        if self._forward is None:
            self._forward = Forward(self.model.lm)
        return self._forward

    def prepare(
        self, query: Query, method: Method, damping: float, *, exact: bool = False
    ) -> tuple[PreparedQuery, dict[str, Any]]:
        """The query under a method, and what the answer says about the query. `exact`: with its whole gradient."""
        if query.saved:
            represented, description = represent_saved(self, query.saved, is_whole=exact)
        else:
            represented, description = self.represent(query)
        if not exact:  # [V, H] more to keep and to precondition, and no other tier reads it
            represented = replace(represented, gradient=None)
        return prepare(represented, self.projection, method, damping), query.description | description

    def represent(self, query: Query) -> tuple[QueryRepresentation, dict[str, Any]]:
        """The mean of a query's samples, less that of those against it, run through the model; and their counts."""
        terms: list[tuple[float, QueryRepresentation]] = []
        counts: list[dict[str, Any]] = []
        for factor, samples in query.terms():
            represented, of_term = self._mean(samples, [bad.reason for bad in query.skipped if not counts])
            terms.append((factor, represented))
            counts.append(of_term)
        combined = terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else QueryRepresentation.combine(terms)
        return combined, {name: sum(of_term[name] for of_term in counts) for name in counts[0]}

    def _mean(self, samples: Sequence[Sample], problems: list[str]) -> tuple[QueryRepresentation, dict[str, Any]]:
        """The mean of samples, run through the model, and their counts; `problems` are known already."""
        encoder = self.model.encoder
        results = encoder.encode(samples)
        encoded = [item for item in results if isinstance(item, EncodedSample)]
        problems = problems + [item for item in results if isinstance(item, str)]
        if not encoded:
            raise EmptyQueryError(f"the query has no counted token: {problems[-1]}")
        gradient = QueryGradient(self.model.lm.head)
        for batch in self.forward.hidden(encoded):
            gradient.add(batch)
        too_large = len(encoded) - gradient.num_samples
        if too_large:
            problems += ["out of memory: a sample does not fit alone"] * too_large
        if not gradient.num_samples:
            raise EmptyQueryError(f"no sample of the query can be run: {problems[-1]}")
        return QueryRepresentation.of(gradient.mean(), self.projection), {
            "num_samples": gradient.num_samples,
            "num_tokens": gradient.num_tokens,
            "num_skipped": len(problems),
            "num_truncated": sum(sample.is_truncated for sample in encoded),
        }

    def answer(self, query: Query, options: QueryOptions) -> QueryResult:
        """The most helpful and most harmful samples for a query."""
        started = time.perf_counter()
        prepared, description = self.prepare(query, options.method, options.damping, exact=options.is_run)
        allowed = None if options.where is None else live_ids(self.session, self.space.id, options.where)
        found = self._search(prepared, options, allowed)
        values = self._exact(prepared, list(found.values)) if options.exact else found.values
        distribution = self.corpus.distribution(
            prepared.search, _row_scale(prepared), found.ends if allowed is None else None
        )
        ends = (
            sorted(values.items(), key=lambda item: (-item[1], item[0]))[: options.top],
            sorted(values.items(), key=lambda item: (item[1], item[0]))[: options.harmful],
        )
        trust = None
        if options.trust or options.certify:
            ends, trust = self._check(prepared, ends, options, allowed)
        helpful, harmful = (self._items(end, distribution, prepared, options) for end in ends)
        how = How(
            space=self.space.fingerprint,
            method=options.method,
            damping=options.damping if options.method == "preconditioned" else None,
            tier="exact" if options.exact or trust else "factors" if options.rerank else "sketch",
            candidates=len(values) if options.exact or options.rerank else 0,
            rare_candidates=found.num_rare,
            index=found.index,
            num_samples=self.corpus.num_samples,
            num_eligible=self.corpus.num_samples if allowed is None else len(allowed),
            where=options.where,
            captured=prepared.captured,
            percentiles=distribution.described,
            trust=None if trust is None else {end: one.to_dict() for end, one in trust.items()},
            seconds=time.perf_counter() - started,
        )
        notes = self.notes(query, description, captured=how.captured)
        if not how.num_eligible:
            notes.append("no sample matches the filter" if how.where else "the space holds no sample")
        notes += [one.describe(end) for end, one in (trust or {}).items()]
        return QueryResult(description, helpful, harmful, how, notes)

    def _check(
        self,
        prepared: PreparedQuery,
        ends: tuple[list[tuple[int, float]], list[tuple[int, float]]],
        options: QueryOptions,
        allowed: np.ndarray | None,
    ) -> tuple[tuple[list[tuple[int, float]], list[tuple[int, float]]], dict[str, Trust]]:
        """Both ends at the exact tier, and how far to trust each (curator/query/trust.py)."""
        bounds = bounds_of(self.segments, prepared, _row_scale(prepared), allowed=allowed, excluded=self.deleted)
        is_refitted = bool(self.space.projection.get("replaces"))
        known: dict[int, float] = {}

        def score(ids: Sequence[int]) -> dict[int, float]:
            missing = [id_ for id_ in ids if id_ not in known]
            if missing:
                known.update(self._exact(prepared, missing))
            return {id_: known[id_] for id_ in ids}

        found = [
            check_end(bounds, [id_ for id_, _ in end], sign, score, options, is_guaranteed=not is_refitted)
            for end, sign in zip(ends, (1, -1), strict=True)
        ]
        (helpful, of_helpful), (harmful, of_harmful) = found
        return (helpful, harmful), {"helpful": of_helpful, "harmful": of_harmful}

    def _search(self, prepared: PreparedQuery, options: QueryOptions, allowed: np.ndarray | None) -> _Found:
        """Candidates of both ends with their values, rescored unless rerank is 0 or they go on to the exact tier."""
        depth = max(options.top, options.harmful, options.rerank)
        if not self.segments:
            index: dict[str, Any] = {"type": "none", "shards": 0, "rows": 0, "bytes": 0, "scanned": 0}
            return _Found({}, index, Ends(*np.empty((2, 0))))
        searched = self.indexes.get(_row_scale(prepared))
        both_ends = np.stack([prepared.search, -prepared.search])
        ids_QK, scores_QK = searched.search(both_ends, depth, allowed=allowed, excluded=self.deleted)
        values = {
            int(id_): float(sign * score)
            for ids, scores, sign in zip(ids_QK, scores_QK, (1, -1), strict=True)
            for id_, score in zip(ids, scores, strict=True)
            if id_ >= 0
        }
        rare = self._rare(prepared, options, allowed, list(values))
        values |= rare
        if options.rerank and not options.exact:
            values = self._rerank(prepared, values)
        highest, lowest = (scores[ids >= 0] for ids, scores in zip(ids_QK, scores_QK, strict=True))
        return _Found(values, searched.describe(), Ends(highest, -lowest), len(rare))

    def _rare(
        self, prepared: PreparedQuery, options: QueryOptions, allowed: np.ndarray | None, known: list[int]
    ) -> dict[int, float]:
        """The sketch's values of further candidates, which share rare tokens with the query (index/rare_scan.py)."""
        num_more = math.ceil(RARE_SHARE * options.rerank)
        if not num_more:
            return {}
        ids, values = rare_candidates(
            self.segments,
            prepared.search,
            prepared.outside,
            num_more,
            row_scale=_row_scale(prepared),
            allowed=allowed,
            excluded=np.union1d(self.deleted, np.array(known, np.int64)),
        )
        return dict(zip(ids.tolist(), values.tolist(), strict=True))

    def _place(self, sample_id: int) -> tuple[Segment, int]:
        segment = self.segments[int(np.searchsorted(self._first_ids, sample_id, side="right")) - 1]
        return segment, int(np.searchsorted(segment.ids, sample_id))

    def factors_of(self, sample_id: int) -> QuantizedFactors:
        """A sample's stored factors."""
        segment, row = self._place(sample_id)
        return segment.factors(row)

    def norm_of(self, sample_id: int) -> float:
        """A sample's ||G||."""
        segment, row = self._place(sample_id)
        return float(segment.norms[row])

    def run(self, ids: list[int]) -> CountedHidden:
        """Stored samples, run through the model again in one batch."""
        return self.model.lm.hidden(self._encode_again(ids))

    def value_of(self, prepared: PreparedQuery, sample_id: int, *, exact: bool) -> float:
        """One sample's value, as a query would answer it at that tier."""
        if exact:
            return self._exact(prepared, [sample_id])[sample_id]
        segment, row = self._place(sample_id)
        sketch = segment.sketches(row, row + 1)[0].astype(np.float64)
        inside = float(sketch @ prepared.search) * float(
            row_factors(segment.norms[row : row + 1], _row_scale(prepared))[0]
        )
        return self._rerank(prepared, {sample_id: inside})[sample_id]

    def _rerank(self, prepared: PreparedQuery, values: dict[int, float]) -> dict[int, float]:
        """Adds what lies outside the sketch, from the candidates' factors (index/factors.py)."""
        if not values:
            return values
        ids = sorted(values)  # as they lie on disk
        places = [self._place(id_) for id_ in ids]
        per_token = token_values(gather_factors(places), prepared.outside).astype(np.float64)
        ends = np.cumsum([0] + [segment.num_tokens_of[row] for segment, row in places])
        outside = np.diff(np.concatenate([[0.0], np.cumsum(per_token)])[ends])
        norms = np.array([segment.norms[row] for segment, row in places], dtype=np.float32)
        outside = outside * row_factors(norms, _row_scale(prepared))
        return {id_: values[id_] + float(extra) for id_, extra in zip(ids, outside, strict=True)}

    def _exact(self, prepared: PreparedQuery, ids: list[int]) -> dict[int, float]:
        """Runs the candidates through the model again: the definition, no projection, no quantization."""
        encoded = self._encode_again(ids)
        values: dict[int, float] = {}

        def work(batch: Sequence[EncodedSample]) -> np.ndarray:
            return self._exact_of(prepared, self.model.lm.hidden(batch))

        for batch, found in self.forward.run(encoded, work):
            if found is None:
                raise CuratorError(f"sample {ids[batch[0]]} does not fit the memory alone; leave --exact out")
            values |= {ids[position]: float(value) for position, value in zip(batch, found, strict=True)}
        norms = np.array([segment.norms[row] for segment, row in map(self._place, ids)], dtype=np.float32)
        factors = row_factors(norms, _row_scale(prepared))
        return {id_: values[id_] * float(factor) for id_, factor in zip(ids, factors, strict=True)}

    @torch.inference_mode()
    def _exact_of(self, prepared: PreparedQuery, hidden: CountedHidden) -> np.ndarray:
        """<G_i, gradient> of each sample of a batch, float64 [B]; G_i is never formed."""
        assert prepared.gradient is not None
        head = self.model.lm.head
        block = max(1, MAX_ELEMENTS // head.vocab_size)
        per_token = [
            ((head.errors(states, labels)[0] @ prepared.gradient) * states.float()).double().sum(1)
            for states, labels in zip(hidden.hidden.split(block), hidden.labels.split(block), strict=True)
        ]
        return np.array([part.sum().item() for part in torch.cat(per_token).split(hidden.counts)])

    def _encode_again(self, ids: list[int]) -> list[EncodedSample]:
        rows = rows_by_id(self.session, ids)
        samples = [rows[id_][0].content for id_ in ids]
        encoded = []
        for id_, item in zip(ids, self.model.encoder.encode(samples), strict=True):
            if isinstance(item, str):
                raise IntegrityError(f"sample {id_} was valued and cannot be encoded now: {item}; run: curator verify")
            encoded.append(item)
        return encoded

    def _items(
        self,
        ranked: Sequence[tuple[int, float]],
        distribution: Distribution,
        prepared: PreparedQuery,
        options: QueryOptions,
    ) -> list[ScoredSample]:
        rows = rows_by_id(self.session, [id_ for id_, _ in ranked])
        items = []
        for id_, value in ranked:
            sample, dataset = rows[id_]
            items.append(
                ScoredSample(
                    id=id_,
                    key=sample.key,
                    dataset=dataset,
                    label=sample.label,
                    value=value,
                    percentile=distribution.percentile(value),
                    text=sample.full_text,
                    meta=sample.meta,
                    tokens=self._tokens(id_, prepared) if options.tokens else None,
                )
            )
        return items

    def _tokens(self, sample_id: int, prepared: PreparedQuery) -> list[TokenValue]:
        """The counted tokens with their parts of the value, from the factors alone, without the errors cut off."""
        segment, row = self._place(sample_id)
        factors = segment.factors(row)
        values = token_values(factors, prepared.tokens)
        values = values * row_factors(segment.norms[row : row + 1], _row_scale(prepared))
        texts = self.model.encoder.token_texts(factors.labels.tolist())
        return [TokenValue(text, float(value)) for text, value in zip(texts, values, strict=True)]

    @staticmethod
    def notes(
        query: Query,
        description: dict[str, Any],
        *,
        captured: float,
        advice: str = "look deeper with --rerank 1000, or check with --exact",
    ) -> list[str]:
        """What a reader of any answer to the query should know of it, in words; `advice`: where the sketch is blind."""
        notes = [] if query.reading is None else [query.reading]
        if description["num_skipped"]:
            first = query.skipped[0].reason if query.skipped else "no counted token"
            notes.append(f"{description['num_skipped']} rows of the query were skipped ({first})")
        if description["num_truncated"]:
            notes.append(f"{description['num_truncated']} samples of the query were truncated")
        if captured < _LOW_CAPTURED:
            notes.append(
                f"the sketch sees only {captured:.0%} of this query: it is unlike the data that the space was "
                f"calibrated on; {advice}"
            )
        return notes


def _row_scale(prepared: PreparedQuery) -> RowScale:
    return "inverse_norm" if prepared.is_cosine else "none"
