"""Settings every test runs under: no network, one thread, quiet libraries; set before torch is imported.

And the stores that many tests share.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
from hypothesis import settings

from curator import Curator
from curator.cli.main import main
from curator.metadata.spaces import find_space
from curator.query import refresh_indexes
from tests.stores import CORPUS, NAMED, SIZE, add

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)  # a busy machine is no failure
settings.load_profile("shared")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of SIZE samples in several segments, built once; tests read it and leave it as it is."""
    folder = tmp_path_factory.mktemp("built")
    with Curator.open(folder / "store", device="cpu") as curator:
        report = add(curator, folder / "corpus.jsonl", CORPUS[:SIZE], **NAMED, segment_tokens=200)
    assert report.added == SIZE
    return folder / "store"


@pytest.fixture(scope="session")
def asked(built: Path) -> Iterator[Curator]:
    """The shared store, opened once: for questions only."""
    with Curator.open(built, create=False, device="cpu") as curator:
        yield curator


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy of the shared store, to change or damage."""
    return Path(shutil.copytree(built, tmp_path / "store"))


@pytest.fixture
def copied(store: Path) -> Iterator[Curator]:
    """A copy of the shared store, opened."""
    with Curator.open(store, create=False, device="cpu") as curator:
        yield curator


@pytest.fixture
def indexed(copied: Curator, monkeypatch: pytest.MonkeyPatch) -> Curator:
    """A copy of the shared store with a vector index, which a corpus of this size would not get."""
    for limit, rows in (("FLAT_MAX_ROWS", 0), ("MIN_RABITQ_WIDTH", 1), ("YOUNG_ROWS", 16)):
        monkeypatch.setattr(f"index.faiss_index.{limit}", rows)
    with copied._store.session() as session:
        refresh_indexes(copied._store, session, find_space(session))
    assert any((copied.path / "indexes").rglob("*.faiss"))
    return copied


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Curator]:
    """A new store, opened."""
    with Curator.open(tmp_path / "empty", device="cpu") as curator:
        yield curator


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: run(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["curator", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
