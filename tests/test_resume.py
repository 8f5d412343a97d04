"""Killed anywhere, an ingest is continued by the same command, and ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curator import Curator, demo
from tests.stores import CORPUS, FIELDS, contents, write_jsonl

pytestmark = pytest.mark.slow
SEGMENT_TOKENS = 60
Moment = Callable[[Path], bool]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [*CORPUS[:100], {"prompt": "no response"}, CORPUS[0]]
    return write_jsonl(tmp_path_factory.mktemp("data") / "corpus.jsonl", rows)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    """What an uninterrupted ingest makes."""
    with Curator.open(tmp_path_factory.mktemp("straight") / "store", device="cpu") as curator:
        curator.ingest(data, dataset="demo", model=str(demo.MODEL), segment_tokens=SEGMENT_TOKENS, **FIELDS)
        return contents(curator)


def start(store: Path, data: Path) -> subprocess.Popen[str]:
    options = ["--prompt-field", "prompt", "--response-field", "response", "--segment-tokens", str(SEGMENT_TOKENS)]
    command = ["ingest", str(data), "--store", str(store), "--dataset", "demo", "--model", str(demo.MODEL), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "curator", *command, "--device", "cpu", "--quiet", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT is ignored, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop(process: subprocess.Popen[str], store: Path, moment: Moment, how: signal.Signals) -> tuple[str, str]:
    """Sends a signal at a moment of the store, and a random instant later."""
    deadline = time.monotonic() + 60
    while not moment(store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(random.random() * 0.05)
    assert process.poll() is None, "the ingest was over before it could be stopped"
    process.send_signal(how)
    return process.communicate(timeout=60)


def is_creating(store: Path) -> bool:
    return (store / "curator.db").exists()


def is_calibrating(store: Path) -> bool:
    return (store / "tmp" / "writer").exists()


def is_writing(store: Path) -> bool:
    return any((store / "tmp").glob("0*"))


def has_segments(count: int) -> Moment:
    return lambda store: len(list((store / "segments").glob("*"))) >= count


def check(store: Path, expected: list[tuple[int, str, float]]) -> None:
    with Curator.open(store, create=False, device="cpu") as curator:
        assert contents(curator) == expected
        found = curator.verify()
        assert found["problems"] == []
        assert [row["row"] for row in curator.quarantined()] == [100]
        assert len(list((store / "segments").iterdir())) == found["segments"]
    assert len(list((store / "spaces").iterdir())) == 1
    assert list((store / "tmp").iterdir()) == []


def test_a_killed_ingest_ends_like_an_uninterrupted_one(
    data: Path, straight: list[tuple[int, str, float]], tmp_path: Path
):
    store = tmp_path / "store"
    for moment in (is_creating, is_calibrating, is_writing, has_segments(8)):
        stop(start(store, data), store, moment, signal.SIGKILL)
        if (store / "FORMAT_VERSION").exists():
            with Curator.open(store, create=False) as curator:  # between kill and resume it is sound, too
                assert curator.verify()["problems"] == []
    process = start(store, data)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    report = json.loads(out)
    assert 0 < report["added"] < len(straight), "the last run took up the work of those before it"
    assert report["present"] + report["added"] == len(straight) == report["num_samples"]
    check(store, straight)


def test_an_interrupted_ingest_says_so_and_continues(
    data: Path, straight: list[tuple[int, str, float]], tmp_path: Path
):
    store = tmp_path / "store"
    process = start(store, data)
    out, err = stop(process, store, has_segments(2), signal.SIGINT)
    assert process.returncode == 130
    assert err == "curator: interrupted; what is committed is safe, the same command continues\n"
    assert json.loads(out)["is_interrupted"]
    process = start(store, data)
    process.communicate(timeout=120)
    assert process.returncode == 3
    check(store, straight)
