"""Which group each sample belongs to, in the store and in a clean reference: by label, or by a metadata field."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curator.errors import UsageError
from curator.metadata.samples import live_rows
from curator.query import Answering, Query
from curator.sources import read_rows, resolve, settle_fields, shape_of, to_sample
from curator.types import BadRow, Fields, Row

__all__ = ["Groups", "reference_queries"]


class Groups:
    """The samples that have a group: ids int64 [N] ascending, codes int64 [N], and the groups' names by code."""

    def __init__(self, answering: Answering, by: str | None, where: str | None):
        """Raises UsageError where no sample has one, or none matches the filter."""
        found: dict[str, int] = {}
        ids, codes = [], []
        self.num_without = 0
        what = "label" if by is None else "meta"
        for id_, value in live_rows(answering.session, answering.space.id, [what], where):
            name = value if by is None else _name(value.get(by))
            if name is None:
                self.num_without += 1
                continue
            ids.append(id_)
            codes.append(found.setdefault(name, len(found)))
        if not ids and not self.num_without:
            raise UsageError("no sample matches the filter" if where else "the space holds no sample")
        if not ids:
            field = "label" if by is None else f"field {by!r}"
            raise UsageError(f"no sample has a {field} to group by; give --by FIELD, a metadata field of your samples")
        self.ids, self.codes = np.array(ids, np.int64), np.array(codes, np.int64)
        self.names = list(found)

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each group, by code."""
        return np.bincount(self.codes, minlength=len(self.names))

    def only(self, codes: np.ndarray) -> None:
        """Drops the samples of all other groups."""
        kept = np.isin(self.codes, codes)
        self.ids, self.codes = self.ids[kept], self.codes[kept]


def reference_queries(
    data: Sequence[str | Path], fields: Fields, by: str | None, known: Sequence[Fields] = ()
) -> dict[str, Query]:
    """Group -> a query of its clean rows. Raises UsageError where no row is usable, or has a group."""
    if by is None and fields.label is None:
        raise UsageError("which column of the reference holds the label? Give --label-field COLUMN, or --by FIELD")
    queries: dict[str, Query] = {}
    bad: list[BadRow] = []
    sources = resolve(data)
    fields = settle_fields(sources, fields, known)
    if shape_of(fields) == "preference":
        raise UsageError(
            "a reference of preference pairs is none: each is half wrong; give --prompt-field and --response-field"
        )
    for source in sources:
        for row in read_rows(source, fields.raw):
            sample = to_sample(row, fields) if isinstance(row, Row) else row
            if isinstance(sample, BadRow):
                bad.append(sample)
                continue
            name = sample.label if by is None else _name(sample.meta.get(by))
            if name is None:
                bad.append(BadRow(row.source, row.row, f'no value in field "{by or fields.label}" to group by'))
                continue
            queries.setdefault(name, Query({"group": name}, [], skipped=bad)).samples.append(sample)
    if not queries:
        raise UsageError(f"no usable row in the reference: {bad[0].reason if bad else 'it has no rows'}")
    return queries


def _name(value: Any) -> str | None:
    """A group's name, as a label is written."""
    if value is None or value == "" or isinstance(value, list | dict):
        return None
    return value if isinstance(value, str) else json.dumps(value)
