"""The value of every sample, streamed: a scan of the sketches that holds one block at a time."""

from collections.abc import Iterator
from typing import Any

from curator.metadata.samples import keys_between, live_ids
from curator.query.answer import Answering, QueryOptions
from curator.query.inputs import Query
from index.scan import RowScale, row_factors, scan

__all__ = ["value_rows"]


def value_rows(answering: Answering, query: Query, options: QueryOptions) -> Iterator[dict[str, Any]]:
    """{"id", "key", "value"} of every sample that `options.where` admits, in order of ids, at the sketch tier."""
    prepared, _ = answering.prepare(query, options.method, options.damping)
    allowed = None if options.where is None else live_ids(answering.session, answering.space.id, options.where)
    row_scale: RowScale = "inverse_norm" if prepared.is_cosine else "none"
    blocks = scan(answering.segments, prepared.search[None], allowed=allowed, excluded=answering.deleted)
    for ids, values_nQ, norms in blocks:
        keys = keys_between(answering.session, int(ids[0]), int(ids[-1]))
        values = values_nQ[:, 0] * row_factors(norms, row_scale)
        for id_, value in zip(ids.tolist(), values.tolist(), strict=True):
            yield {"id": id_, "key": keys[id_], "value": value}
