"""Which samples a filter selects, on a real database: ids as arrays, whatever their number and size."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.database import connect, upgrade
from curator.metadata.samples import deleted_ids, live_ids, live_ids_by_dataset
from curator.metadata.tables import Dataset, Sample, Segment, Space

IDS = [2**53 + 1, 7, 2**31, 1, 2**62, *range(100, 9_000, 7)]
NOW = datetime.now(UTC)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Samples that came in no order, every third of them deleted, in two of three datasets."""
    engine = connect(f"sqlite:///{tmp_path / 'curator.db'}")
    upgrade(engine)
    with Session(engine) as session:
        described = {"recipe": {}, "model": "m", "model_files": {}, "projection_sha256": "", "projection_bytes": 0}
        session.add_all(
            Space(id=id_, fingerprint=f"{id_}", recipe_hash="r", projection={}, created_at=NOW, **described)
            for id_ in (1, 2)
        )
        session.add_all(Dataset(id=id_, name=name, created_at=NOW) for id_, name in enumerate("cab", 1))
        session.flush()
        counted = {"num_samples": 0, "num_tokens": 0, "files": [], "created_at": NOW}
        session.add(Segment(id=1, space_id=1, name="s", first_sample_id=1, **counted))
        session.flush()
        session.execute(sa.insert(Sample), [sample(place, id_) for place, id_ in enumerate(IDS)])
        yield session
    engine.dispose()


def sample(place: int, id_: int) -> dict:
    return {
        "id": id_, "space_id": 1, "dataset_id": 1 + place % 2, "segment_id": 1, "content_hash": id_.to_bytes(16, "big"),
        "row": place, "key": str(id_), "has_own_key": False, "label": None, "meta": {}, "num_tokens": place,
        "num_counted": 1, "is_truncated": False, "norm": 1.0, "captured": 1.0, "loss": 1.0,
        "deleted_at": NOW if place % 3 == 0 else None,
    }  # fmt: skip


def ids_where(keep: object) -> list[int]:
    return sorted(id_ for place, id_ in enumerate(IDS) if keep(place))  # type: ignore[operator]


def test_ids_are_exact_ascending_and_of_64_bits(session: Session):
    for found, expected in (
        (live_ids(session, 1), ids_where(lambda place: place % 3)),
        (live_ids(session, 1, "num_tokens < 500"), ids_where(lambda place: place % 3 and place < 500)),
        (live_ids(session, 1, 'dataset = "a"'), ids_where(lambda place: place % 3 and place % 2)),
        (deleted_ids(session, 1), ids_where(lambda place: place % 3 == 0)),
    ):
        assert found.dtype == np.int64
        assert found.tolist() == expected


def test_no_sample_is_an_empty_array(session: Session):
    for found in (live_ids(session, 2), deleted_ids(session, 2), live_ids(session, 1, "num_tokens < 0")):
        assert (found.dtype, found.shape) == (np.dtype(np.int64), (0,))
    assert live_ids_by_dataset(session, 2) == {}


def test_ids_by_dataset_are_all_live_ones_without_empty_datasets(session: Session):
    found = live_ids_by_dataset(session, 1)
    assert list(found) == ["a", "c"]
    assert np.sort(np.concatenate(list(found.values()))).tolist() == live_ids(session, 1).tolist()
    assert found["a"].tolist() == live_ids(session, 1, 'dataset = "a"').tolist()
