"""What stays open between questions: the model of the last space asked, and the store as its last answer saw it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import CuratorError, IntegrityError
from curator.metadata.spaces import find_space
from curator.metadata.tables import Sample, Space
from curator.metadata.tables import Segment as SegmentRow
from curator.query.answer import Answering
from curator.space import ModelOfSpace
from curator.store import Store
from index.errors import FaissMissingError, StoredFileError

__all__ = ["OpenedSpace"]


class OpenedSpace:
    """Answers from the store as it is at each question: opened once, and again only when it has changed."""

    def __init__(self, store: Store, device: str):
        self._store = store
        self._device = device.split(",")[0]
        self._model: tuple[tuple[int, str | None, str | None], ModelOfSpace] | None = None
        self._state: tuple[Any, ...] = ()
        self.answering: Answering | None = None  # what the last answer was made with

    @contextmanager
    def asking(self, named: str | None, model: str | None, adapter: str | None = None) -> Iterator[Answering]:
        """The space of a fingerprint, or the newest; `model`, `adapter`: where they lie now, if they have moved."""
        with self._store.session() as session:
            space = find_space(session, named)
            last = self._model and self._model[0]
            is_same = last and last[0] == space.id and model in (None, last[1]) and adapter in (None, last[2])
            if self._model is None or not is_same:
                self.answering = None
                of_space = ModelOfSpace(space, device=self._device, model=model, adapter=adapter)
                self._model = (space.id, model, adapter), of_space
            answering = self._now(session, space, self._model[1])
            try:
                yield answering
            except StoredFileError as error:
                raise IntegrityError(f"{error}; run: curator verify") from error
            except FaissMissingError as error:
                raise CuratorError(str(error)) from error

    def _now(self, session: Session, space: Space, model: ModelOfSpace) -> Answering:
        state = _generation(session, space)
        if self.answering is None or self._state != state:
            answering: Answering | None = None
            failure: IntegrityError | None = None
            try:
                answering = Answering(self._store, session, space, model, self.answering)
            except IntegrityError as error:
                failure = error
            session.rollback()  # a new look: another process may have compacted or refitted in between
            if _generation(session, space) != state:
                return self._now(session, space, model)
            if answering is None:
                assert failure is not None
                raise failure
            self.answering, self._state = answering, state
        self.answering.session = session
        return self.answering


def _generation(session: Session, space: Space) -> tuple[Any, ...]:
    """Changes whenever the set of segments or of deleted samples does, or the projection of the space."""
    last = (sa.func.max(SegmentRow.id), sa.func.max(SegmentRow.first_sample_id))  # SQLite may give an id twice
    segments = session.execute(sa.select(sa.func.count(SegmentRow.id), *last)).one()
    deleted = session.execute(
        sa.select(sa.func.count(Sample.id), sa.func.max(Sample.deleted_at)).where(Sample.deleted_at.is_not(None))
    ).one()
    fingerprint = session.scalar(sa.select(Space.fingerprint).where(Space.id == space.id))
    return (space.id, fingerprint, *segments, *deleted)
