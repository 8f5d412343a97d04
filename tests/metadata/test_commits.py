"""Row numbers and the commit point: a row keeps its number, and everything or nothing is committed."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from curator.metadata import database
from curator.metadata.commits import commit_rows, commit_segment, next_sample_id
from curator.metadata.row_numbers import RowNumbers
from curator.metadata.spaces import dataset_named
from curator.metadata.tables import Dataset, Extent, Quarantined, Sample
from curator.types import BadRow
from tests.stores import SIZE


@pytest.fixture
def session(tmp_path: Path):
    engine = database.connect(f"sqlite:///{tmp_path / 'curator.db'}")
    database.upgrade(engine)
    with Session(engine, expire_on_commit=False) as session:
        session.connection().exec_driver_sql("pragma foreign_keys=off")  # spaces play no role here
        yield session
    engine.dispose()


def load(session: Session) -> RowNumbers:
    return RowNumbers.load(session, 1, dataset_named(session, "d"))


def test_files_that_grow_in_turns_keep_their_numbers(session: Session):
    numbers = load(session)
    assert [numbers.number("a", row) for row in (0, 1, 2)] == [0, 1, 2]
    assert [numbers.number("b", row) for row in (0, 1)] == [3, 4]
    commit_rows(session, numbers.take())
    numbers = load(session)
    assert [numbers.number("a", row) for row in range(5)] == [0, 1, 2, 5, 6]
    assert [numbers.number("b", row) for row in range(3)] == [3, 4, 7]
    commit_rows(session, numbers.take())
    assert session.scalars(sa.select(Dataset.next_row)).one() == 8


READS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.booleans(), st.booleans()), min_size=1, max_size=8
)


@given(reads=READS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_number_belongs_to_one_row_for_ever(session: Session, reads):
    """Whatever files are read, grown, skipped lines in them, and wherever a run dies before its commit."""
    session.execute(sa.delete(Extent))
    session.execute(sa.update(Dataset).values(next_row=0))
    session.commit()
    sizes: dict[str, int] = {}
    committed: dict[tuple[str, int], int] = {}
    for source, grown_by, is_committed, has_gap in reads:
        numbers = load(session)
        size = sizes.get(source, 0) + grown_by
        found = {(source, row): numbers.number(source, row) for row in range(int(has_gap), size)}
        for place, number in committed.items():
            assert found.get(place, number) == number
        if is_committed:
            commit_rows(session, numbers.take())
            committed |= found
            sizes[source] = size
        else:
            session.rollback()
            session.expunge_all()
    assert len(set(committed.values())) == len(committed)


def test_a_bad_row_stays_in_quarantine_until_it_is_read_without_fault(session: Session):
    def read(last: int, bad: list[int], source: str = "a") -> list[tuple[str, int]]:
        numbers = load(session)
        for row in range(last):
            numbers.number(source, row)
        numbers.bad += [BadRow(source, row, "reason") for row in bad]
        commit_rows(session, numbers.take())
        return [tuple(row) for row in session.execute(sa.select(Quarantined.source, Quarantined.row).order_by("row"))]

    assert read(5, [1, 4]) == [("a", 1), ("a", 4)]
    assert read(3, [1]) == [("a", 1), ("a", 4)]
    assert read(3, [], "b") == [("a", 1), ("a", 4)]
    assert read(5, [2]) == [("a", 2)]
    assert read(5, []) == []


def test_a_commit_that_fails_leaves_no_part_of_it(built: Path, store: Path):
    from curator.metadata.tables import Segment
    from curator.store import Store

    opened = Store(store)
    with opened.session() as session:
        first = next_sample_id(session)
        assert first == SIZE + 1
        sample = dict(session.execute(sa.select(Sample.__table__).limit(1)).mappings().one())
        old = session.scalars(sa.select(Segment).limit(1)).one()
        columns = {c.name: getattr(old, c.name) for c in Segment.__table__.c if c.name not in ("id", "name")}
        numbers = RowNumbers.load(session, 1, dataset_named(session, "demo"))
        numbers.number("new", 0)
        with pytest.raises(sa.exc.IntegrityError):  # the same content twice
            commit_segment(session, numbers.take(), Segment(name="new", **columns), [sample | {"id": first}])
        session.rollback()
    with opened.session() as session:
        assert next_sample_id(session) == SIZE + 1
        assert session.scalar(sa.select(sa.func.count(Segment.id)).where(Segment.name == "new")) == 0
        assert session.scalar(sa.select(sa.func.count(Extent.id)).where(Extent.source == "new")) == 0
    opened.close()
