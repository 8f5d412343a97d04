"""What a selection needs to know of every sample: its dataset, label, tokens and group, as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import UsageError
from curator.metadata.samples import COLUMNS, condition
from curator.metadata.tables import Dataset, Sample
from curator.metadata.where import Several

__all__ = ["Traits", "traits_of"]

_ROWS = 10_000  # fetched at once


@dataclass(frozen=True)
class Traits:
    """One entry in each array for each sample, ids ascending; numbers stand for names."""

    ids: np.ndarray  # int64
    num_tokens: np.ndarray  # int64
    datasets: np.ndarray  # int64, into dataset_names
    labels: np.ndarray  # int64, into label_names
    groups: np.ndarray  # int64, into group_names; all 0 without a field to group by
    dataset_names: list[str]
    label_names: list[str | None]
    group_names: list[str | int | float | bool | None]


def traits_of(session: Session, space_id: int, where: str | None, by: str | None) -> Traits:
    """Of the samples that are not deleted and match the filter.

    Raises UsageError where none has the field `by`, or where a sample can have several of it.
    """
    is_column = by in COLUMNS
    group: Any = sa.literal(None) if by is None else COLUMNS[by] if is_column else Sample.meta
    if isinstance(group, Several):
        raise UsageError(
            f"--by {by}: a sample can have several, so that they make no groups; take one with --where '{by} = \"...\"'"
        )
    query = (
        sa.select(Sample.id, Sample.num_tokens, Dataset.name, Sample.label, group.label("group"))
        .join(Dataset, Sample.dataset_id == Dataset.id)
        .where(Sample.space_id == space_id, Sample.deleted_at.is_(None))
        .order_by(Sample.id)
    )
    if where is not None:
        query = query.where(condition(session, where))
    datasets, labels, groups = _Names(), _Names(), _Names()
    parts = [np.empty((0, 5), np.int64)]
    for rows in session.execute(query, execution_options={"yield_per": _ROWS}).partitions():
        found = [
            (id_, num_tokens, datasets[dataset], labels[label], groups[value if is_column else _text(value, by)])
            for id_, num_tokens, dataset, label, value in rows
        ]
        parts.append(np.array(found, dtype=np.int64))
    columns = np.concatenate(parts).T
    if by is not None and columns.shape[1] and groups.names == [None]:
        raise UsageError(f"--by {by}: no sample has this field")
    ids, num_tokens, of_dataset, of_label, of_group = columns
    return Traits(ids, num_tokens, of_dataset, of_label, of_group, datasets.names, labels.names, groups.names)


def _text(meta: dict[str, Any] | None, by: str | None) -> str | None:
    value = None if meta is None or by is None else meta.get(by)
    return None if value is None else str(value)


class _Names(dict[Any, int]):
    """Numbers for names, in order of their coming."""

    def __missing__(self, name: Any) -> int:
        self[name] = len(self)
        return self[name]

    @property
    def names(self) -> list[Any]:
        """The names by number."""
        return list(self)
