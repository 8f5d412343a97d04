"""Why a sample has its value: the value split over the sample's tokens, the query's tokens, and pairs of both."""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from curator.errors import EmptyQueryError
from curator.metadata.samples import rows_by_id
from curator.metadata.saved_queries import find_query
from curator.models import CountedHidden
from curator.query.answer import Answering, QueryOptions
from curator.query.inputs import Query
from curator.query.saved import sample_of
from curator.types import EncodedSample, Sample
from curator.value import PreparedQuery
from curator.value.pairs import TokenStates, pair_values
from index.scan import row_factors

__all__ = ["ExplainedSample", "ExplainedToken", "Explanation", "Pair", "explain"]

NUM_EXPECTED = 3  # alternatives to a token
NUM_QUERY_SAMPLES = 8  # of a large query, those with the largest parts are shown


@dataclass(frozen=True)
class ExplainedToken:
    """A counted token, its part of the value, and what the model expected instead: text and error -e, largest first.

    The error is the probability that the model gave it, times the slope of the head's scaling or softcap.
    """

    text: str
    value: float
    expected: list[tuple[str, float]]


@dataclass(frozen=True)
class ExplainedSample:
    """A sample of the query, its part of the value, and its counted tokens."""

    text: str
    value: float
    tokens: list[ExplainedToken]


@dataclass(frozen=True)
class Pair:
    """A token of the sample and one of the query: numbers into their lists, and their part of the value."""

    sample_token: int
    query_sample: int
    query_token: int
    value: float


@dataclass(frozen=True)
class Explanation:
    """value = sum of the tokens' parts + rest = sum of the query samples' parts + not_shown + rest.

    `rest` is what the stored factors of the sample leave out, zero up to rounding where the sample was run (`exact`).
    """

    sample: dict[str, Any]  # id, key, dataset, label, text, meta
    query: dict[str, Any]
    value: float
    rest: float
    tokens: list[ExplainedToken]
    query_samples: list[ExplainedSample]  # those with the largest parts
    not_shown: float  # the parts of the query's other samples, together
    pairs: list[Pair]  # those with the largest parts, among the query samples shown
    how: dict[str, Any]  # space, method, damping, tier, num_query_samples

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


@dataclass(frozen=True)
class _Part:
    """One sample of the query, valued."""

    text: str
    value: float
    by_token: np.ndarray  # float64 [Q]
    labels: list[int]
    expected: list[list[tuple[int, float]]]
    pairs: np.ndarray  # float32 [K, Q]


@torch.inference_mode()
def explain(
    answering: Answering, sample_id: int, query: Query, options: QueryOptions, *, num_pairs: int
) -> Explanation:
    """Splits a sample's value for a query; `options` give method, damping and tier. The query's samples are run."""
    prepared, description = answering.prepare(query, options.method, options.damping, exact=options.exact)
    scale = float(row_factors(np.array([answering.norm_of(sample_id)]), "inverse_norm")[0]) if prepared.is_cosine else 1
    weights = None
    if options.method == "preconditioned":
        weights = answering.projection.damped_weights(options.damping)
    states, labels, expected = _sample(answering, sample_id, exact=options.exact, with_cores=weights is not None)
    by_token = np.zeros(len(labels))
    best: list[tuple[float, int, _Part]] = []
    not_shown = 0.0
    for number, part in enumerate(_parts(answering, query, states, weights, prepared, scale, exact=options.exact)):
        by_token += part.pairs.sum(1, dtype=np.float64)
        heapq.heappush(best, (abs(part.value), -number, part))
        if len(best) > NUM_QUERY_SAMPLES:
            not_shown += heapq.heappop(best)[2].value
    shown = [part for _, _, part in sorted(best, key=lambda item: item[:2], reverse=True)]
    value = answering.value_of(prepared, sample_id, exact=options.exact)
    row, dataset = rows_by_id(answering.session, [sample_id])[sample_id]
    texts = _Texts(answering)
    return Explanation(
        sample={
            "id": sample_id,
            "key": row.key,
            "dataset": dataset,
            "label": row.label,
            "text": row.full_text,
            "meta": row.meta,
        },
        query=description,
        value=value,
        rest=value - float(by_token.sum()),
        tokens=texts.tokens(labels, by_token, expected),
        query_samples=[
            ExplainedSample(part.text, part.value, texts.tokens(part.labels, part.by_token, part.expected))
            for part in shown
        ],
        not_shown=not_shown,
        pairs=_largest(shown, num_pairs),
        how={
            "space": answering.space.fingerprint,
            "method": options.method,
            "damping": options.damping if options.method == "preconditioned" else None,
            "tier": "exact" if options.exact else "factors",
            "num_query_samples": number + 1,
        },
    )


def _sample(
    answering: Answering, sample_id: int, *, exact: bool, with_cores: bool
) -> tuple[TokenStates, list[int], list[list[tuple[int, float]]]]:
    """The sample's tokens, run through the model or from its factors; its labels, and what was expected instead."""
    if exact:
        batch = answering.run([sample_id])
        errors, _ = answering.model.lm.head.errors(batch.hidden, batch.labels)
        states = TokenStates.of(errors, batch.hidden, answering.projection, with_cores=with_cores)
        return states, batch.labels.tolist(), _expected(errors)
    factors = answering.factors_of(sample_id)
    device = answering.model.device
    states = TokenStates.stored(factors, answering.projection, with_cores=with_cores, device=device)
    return states, factors.labels.tolist(), _expected(states.errors)


def _parts(
    answering: Answering,
    query: Query,
    sample: TokenStates,
    weights: torch.Tensor | None,
    prepared: PreparedQuery,
    scale: float,
    *,
    exact: bool,
) -> Iterator[_Part]:
    """Every sample of the query with its pairs, in the order of the query."""
    head, projection = answering.model.lm.head, answering.projection
    for factor, samples in _weighted(answering, query):
        items = answering.model.encoder.encode(samples)
        usable = [(one, item) for one, item in zip(samples, items, strict=True) if isinstance(item, EncodedSample)]
        found: dict[int, _Part] = {}
        encoded = [item for _, item in usable]
        for positions, batch in answering.forward.run(encoded, answering.model.lm.hidden):
            if batch is None:
                raise EmptyQueryError("a sample of the query does not fit the memory alone: it cannot be explained")
            for position, hidden, labels in _split(positions, batch):
                errors, _ = head.errors(hidden, labels)
                states = TokenStates.of(errors, hidden, projection, with_cores=weights is not None)
                pairs = pair_values(sample, states if exact else states.on_basis(projection), weights)
                share = factor * scale / len(usable) / (prepared.norm if prepared.is_cosine else 1.0)
                pairs_KQ = (pairs * share).cpu().numpy()
                by_token = pairs_KQ.sum(0, dtype=np.float64)
                text = usable[position][0].full_text
                found[position] = _Part(
                    text, float(by_token.sum()), by_token, labels.tolist(), _expected(errors), pairs_KQ
                )
        yield from (found[position] for position in sorted(found))


def _weighted(answering: Answering, query: Query) -> Iterator[tuple[float, list[Sample]]]:
    """The means that a query is the weighted sum of."""
    if not query.saved:
        yield from query.terms()
    for name, factor in query.saved.items():
        for part in find_query(answering.session, name).parts:
            yield factor * part["weight"], [sample_of(answering.store, sample) for sample in part["samples"]]


def _split(positions: Sequence[int], batch: CountedHidden) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    return zip(positions, batch.hidden.split(batch.counts), batch.labels.split(batch.counts), strict=True)


def _expected(errors: torch.Tensor) -> list[list[tuple[int, float]]]:
    """For each token, what it was not and the model thought likeliest: ids with -e, largest first."""
    values, ids = (-errors).topk(min(NUM_EXPECTED, errors.shape[1]), dim=1)
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [[(id_, value) for id_, value in zip(*row, strict=True) if value > 0] for row in rows]


def _largest(shown: Sequence[_Part], num_pairs: int) -> list[Pair]:
    """The pairs with the largest parts, either sign, largest first."""
    found = []
    for number, part in enumerate(shown):
        flat = np.abs(part.pairs).ravel()
        few = np.argpartition(-flat, min(num_pairs, len(flat) - 1))[:num_pairs]
        for one, other in zip(*np.unravel_index(few, part.pairs.shape), strict=True):
            found.append(Pair(int(one), number, int(other), float(part.pairs[one, other])))
    return sorted(found, key=lambda pair: (-abs(pair.value), pair.query_sample, pair.sample_token, pair.query_token))[
        :num_pairs
    ]


class _Texts:
    """Token ids to text."""

    def __init__(self, answering: Answering):
        self._encoder = answering.model.encoder

    def tokens(
        self, labels: list[int], values: np.ndarray, expected: list[list[tuple[int, float]]]
    ) -> list[ExplainedToken]:
        """The counted tokens in order, as they stand in the text."""
        texts = self._encoder.token_texts(labels)
        alone = {id_: self._encoder.tokenizer.decode([id_]) for id_, _ in itertools.chain.from_iterable(expected)}
        return [
            ExplainedToken(text, float(value), [(alone[id_], error) for id_, error in others])
            for text, value, others in zip(texts, values, expected, strict=True)
        ]
