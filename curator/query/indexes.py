"""The vector indexes of a space: opened as they are for a query, built beside queries or after an ingest."""

import contextlib
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.orm import Session

from curator.metadata.tables import Space
from curator.store import Store
from index.device_scan import DeviceScan
from index.errors import FaissMissingError
from index.faiss_index import FaissIndex
from index.scan import RowScale
from index.segment import Segment

__all__ = ["SpaceIndexes", "refresh_indexes"]

_ROW_SCALES: tuple[RowScale, ...] = ("none", "inverse_norm")


class SpaceIndexes:
    """The indexes over some segments, one for each row scale, replaced by better ones as these are built.

    Nothing is built before an answer: what has no shard yet is scanned, and a thread builds it. The thread gives up
    once this object is gone or the process ends.
    """

    def __init__(
        self,
        store: Store,
        space: Space,
        segments: Sequence[Segment],
        device: torch.device,
        former: "SpaceIndexes | None" = None,
    ):
        self.directory = store.index_directory(space)
        self.segments = segments
        self._former = dict(former._indexes) if former is not None and former.directory == self.directory else {}
        self._device = device
        self._indexes: dict[RowScale, FaissIndex] = {}
        self._on_device: dict[RowScale, DeviceScan] = {}
        self._building: dict[RowScale, threading.Thread] = {}

    def get(self, row_scale: RowScale) -> FaissIndex | DeviceScan:
        """The index as it is now; the sketches themselves where the space's device is a GPU that holds them."""
        if row_scale in self._on_device or DeviceScan.fits(self.segments, self._device):
            if row_scale not in self._on_device:
                self._on_device[row_scale] = DeviceScan(self.segments, self._device, row_scale)
            return self._on_device[row_scale]
        if row_scale not in self._indexes:
            index = _open(
                self.directory, self.segments, row_scale, build=False, reuse=self._former.pop(row_scale, None)
            )
            self._indexes[row_scale] = index
            if index.num_missing:
                arguments = (weakref.ref(self), self.directory, self.segments, row_scale, index)
                self._building[row_scale] = threading.Thread(target=_build, args=arguments, name="build index")
                self._building[row_scale].start()
        return self._indexes[row_scale]

    def wait(self) -> None:
        """Returns once no index is being built any more."""
        for thread in self._building.values():
            thread.join()


def _open(directory: Path, segments: Sequence[Segment], row_scale: RowScale, **how: Any) -> FaissIndex:
    names = [segment.directory.name for segment in segments]
    return FaissIndex.open(directory, segments, names=names, row_scale=row_scale, **how)


def _build(
    owner: "weakref.ref[SpaceIndexes]",
    directory: Path,
    segments: Sequence[Segment],
    row_scale: RowScale,
    reuse: FaissIndex,
) -> None:
    """Runs in a thread; holding no reference to the owner, it sees when that is gone."""
    main = threading.main_thread()
    is_wanted = lambda: owner() is not None and main.is_alive()  # noqa: E731
    index = _open(directory, segments, row_scale, reuse=reuse, is_wanted=is_wanted)
    if (indexes := owner()) is not None:
        indexes._indexes[row_scale] = index
        _prune(index)


def _prune(index: FaissIndex) -> None:
    """Removes the shards that larger ones have replaced."""
    if not index.num_missing:
        with contextlib.suppress(OSError):  # a store that may only be read keeps them
            index.prune()


def refresh_indexes(store: Store, session: Session, space: Space) -> None:
    """Builds what a space's indexes lack: for an ingest to call after its last commit, outside of any query.

    Covers the plain index, and the one for cosine where a query has ever made it. Without faiss, and for a corpus that
    needs no index, it does nothing. Safe beside readers and to be killed: shards appear whole or not at all.
    """
    directory, segments = store.index_directory(space), store.segments(session, space.id)
    if not segments:
        return
    with contextlib.suppress(FaissMissingError):  # queries say so, and curator doctor says what to install
        for row_scale in _ROW_SCALES:
            if row_scale == "none" or any(directory.glob(f"{row_scale}-*.faiss")):
                _prune(_open(directory, segments, row_scale))
