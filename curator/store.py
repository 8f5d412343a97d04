"""The store's directory: what lies where, who may write, and what is left over from a job that was killed.

    store/
      curator.db           spaces, datasets, samples, segments, quarantine (or another database, by URL)
      spaces/<fp>/         projection.safetensors and space.json
      segments/<name>/     sketches, factors, rare_tokens (.safetensors), written once
      queries/<file>       saved queries, as one space sees them
      images/<xx>/<sha>    images of samples, each once
      indexes/<fp>/...     FAISS files: a cache
      tmp/                 what is being written; swept when the next writer starts
      LOCK                 held by the one writer
      FORMAT_VERSION       the layout's version and where the database is

SQLite is the only source of truth: a directory that the database does not name does not exist for the store.

`index` brings torch (2 s) with it, so it is imported where arrays are read or written: status, delete and db never do.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.orm import Session

from curator.errors import CuratorError, IntegrityError, LockedError, NotFoundError, UsageError
from curator.image_files import ImageFiles
from curator.metadata import database
from curator.metadata.images import add_images
from curator.metadata.saved_queries import query_files
from curator.metadata.tables import STORE_ID, Counter, Space
from curator.metadata.tables import Segment as SegmentRow
from curator.types import Sample

if TYPE_CHECKING:
    from index.projection import Projection
    from index.segment import Segment

__all__ = ["DATABASE_URL", "PROJECTION_FILE", "SPACE_FILE", "Store", "keep_images", "open_engine"]

_FORMAT = 1
_FOLDERS = ("spaces", "segments", "queries", "indexes", "tmp")
DATABASE_URL = "CURATOR_DATABASE_URL"  # the environment variable
PROJECTION_FILE = "projection.safetensors"
SPACE_FILE = "space.json"


class Store:
    """A store on disk, opened. `Store.create` makes one; `Store(root)` opens what is there."""

    def __init__(self, root: Path | str, *, database_url: str | None = None):
        self.root = Path(root).expanduser().absolute()
        self.images = ImageFiles(self.root)
        self.engine = open_engine(self.root, database_url=database_url)
        try:
            database.require_current(self.engine)
            self._require_own_database()
        except BaseException:
            self.engine.dispose()
            raise
        self._segments: dict[str, Segment] = {}

    @classmethod
    def create(cls, root: Path | str, *, database_url: str | None = None) -> "Store":
        """Opens the store at `root`, made first where there is none. Raises UsageError for a directory in other use."""
        root = Path(root).expanduser().absolute()
        if not (root / "FORMAT_VERSION").exists():
            if root.exists() and (not root.is_dir() or _is_in_other_use(root)):
                raise UsageError(f"{root} is not empty and holds no store; give --store another directory")
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / "LOCK"):  # two processes may create it at once
                _make(root, database_url)
        return cls(root, database_url=database_url)

    def _require_own_database(self) -> None:
        # Sweeping by another store's database would remove every segment of this one.
        with self.session() as session:
            found = session.get(Counter, STORE_ID)
        if found is None or found.value != _read_marker(self.root)["id"]:
            raise UsageError(f"the database {self.engine.url!r} belongs to another store than {self.root}")

    def session(self) -> Session:
        """A new database session."""
        return Session(self.engine, expire_on_commit=False)

    def close(self) -> None:
        """Releases the database's connections and the mapped segments."""
        self._segments.clear()
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the write lock and sweeps leftovers first. Raises LockedError when another process holds it."""
        lock = FileLock(self.root / "LOCK", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise LockedError(
                f"another process{self._writer()} writes to {self.root}; wait for it, queries work meanwhile"
            ) from None
        try:
            self.sweep()
            (self.root / "tmp" / "writer").write_text(str(os.getpid()))
            yield
        finally:
            (self.root / "tmp" / "writer").unlink(missing_ok=True)
            lock.release()

    def _writer(self) -> str:
        try:
            return f" (pid {(self.root / 'tmp' / 'writer').read_text()})"
        except FileNotFoundError:
            return ""

    def sweep(self) -> None:
        """Removes what no commit names: files of a killed job."""
        with self.session() as session:
            segments = set(session.scalars(sa.select(SegmentRow.name)))
            spaces = set(session.scalars(sa.select(Space.fingerprint)))
            queries = query_files(session)
        (self.root / "queries").mkdir(exist_ok=True)  # a store of before has none
        for folder, known in (("tmp", set()), ("segments", segments), ("spaces", spaces), ("queries", queries)):
            for path in (self.root / folder).iterdir():
                if path.name not in known:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def publishing(self, folder: str, name: str) -> Iterator[Path]:
        """A fresh directory in tmp/ that becomes <folder>/<name> when the block ends well, durably and at once."""
        from index.stored import fsync_directory

        temporary = self.root / "tmp" / name
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            fsync_directory(temporary)
            os.rename(temporary, self.root / folder / name)
            fsync_directory(self.root / folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def segment(self, name: str) -> "Segment":
        """An open segment. Raises IntegrityError when its files are not readable."""
        from index.errors import StoredFileError
        from index.segment import Segment

        if name not in self._segments:
            try:
                self._segments[name] = Segment(self.root / "segments" / name)
            except (StoredFileError, OSError) as error:
                raise IntegrityError(f"segment {name}: {error}; run: curator verify") from error
        return self._segments[name]

    def segments(self, session: Session, space_id: int) -> list["Segment"]:
        """The open segments of a space, ids ascending."""
        query = sa.select(SegmentRow.name).where(SegmentRow.space_id == space_id).order_by(SegmentRow.first_sample_id)
        names = list(session.scalars(query))
        for gone in set(self._segments) - set(session.scalars(sa.select(SegmentRow.name))):
            del self._segments[gone]
        return [self.segment(name) for name in names]

    def projection(self, space: Space) -> "Projection":
        """The projection of a space. Raises IntegrityError when it is missing or damaged."""
        from index.errors import StoredFileError
        from index.projection import Projection

        path = self.root / "spaces" / space.fingerprint / PROJECTION_FILE
        try:
            return Projection.load(path)
        except StoredFileError as error:
            raise IntegrityError(f"{error}; run: curator verify") from error

    def index_directory(self, space: Space) -> Path:
        """Where the FAISS files of a space lie."""
        return self.root / "indexes" / space.fingerprint[:16]


def keep_images(store: Store, session: Session, samples: Iterable[Sample]) -> None:
    """Makes the samples' images durable and names them; the caller commits."""
    found = {image.sha256: Path(image.path).stat().st_size for sample in samples for image in sample.images}
    if found:
        store.images.settle(found)
        add_images(session, found)


def open_engine(root: Path | str, *, database_url: str | None = None) -> sa.Engine:
    """The database of a store, whatever its schema's revision: for migrations. Raises NotFoundError without a store."""
    root = Path(root).expanduser().absolute()
    marker = _read_marker(root)
    return database.connect(_database_url(root, marker, database_url or os.environ.get(DATABASE_URL)))


def _read_marker(root: Path) -> dict[str, object]:
    path = root / "FORMAT_VERSION"
    try:
        marker: dict[str, object] = json.loads(path.read_text())
        version = marker["format"]
        missing = {"database", "id"} - marker.keys()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no store at {root}; curator ingest DATA --model M --store DIR makes one") from None
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    if version != _FORMAT:  # first: what else another format holds is not for this version to judge
        raise CuratorError(f"the store {root} has format {version}; this version of curator reads {_FORMAT}")
    if missing:
        raise IntegrityError(f"{path} is damaged: it does not say its {' and '.join(sorted(missing))}")
    return marker


def _is_in_other_use(root: Path) -> bool:
    """Whether a directory holds more than what a killed creation can have left."""
    files = ("curator.db", "curator.db-wal", "curator.db-shm", "curator.db-journal", "FORMAT_VERSION.new", "LOCK")
    return any(
        any(path.iterdir()) if path.name in _FOLDERS and path.is_dir() else path.name not in files
        for path in root.iterdir()
    )


def _make(root: Path, database_url: str | None) -> None:
    if (root / "FORMAT_VERSION").exists():
        return
    for folder in _FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    marker: dict[str, object] = {"format": _FORMAT, "database": "url" if database_url else "sqlite"}
    engine = database.connect(_database_url(root, marker, database_url))
    try:
        database.upgrade(engine)
        with Session(engine) as session:
            counter = session.get(Counter, STORE_ID)
            if counter is not None and database_url:
                raise UsageError(f"the database {engine.url!r} belongs to another store; give an empty one")
            counter = counter or Counter(name=STORE_ID, value=secrets.randbits(62))
            session.add(counter)
            session.commit()
            marker["id"] = counter.value
    finally:
        engine.dispose()
    # The marker comes last: a creation that was killed is taken up again.
    _write_durably(root / "FORMAT_VERSION", json.dumps(marker))


def _database_url(root: Path, marker: dict[str, object], database_url: str | None) -> str | sa.URL:
    if marker["database"] == "sqlite":
        return sa.URL.create("sqlite", database=str(root / "curator.db"))
    if database_url is None:
        raise UsageError(f"the store {root} has its database elsewhere; set {DATABASE_URL}")
    return database_url


def _write_durably(path: Path, text: str) -> None:
    from index.stored import fsync_directory

    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    fsync_directory(path.parent)
