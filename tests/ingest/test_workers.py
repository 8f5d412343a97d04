"""Several devices, one worker process each: the values of one device, and clear words when a worker fails."""

import os
import signal
from pathlib import Path

import pytest

from curator import Curator, demo
from curator.errors import CuratorError, ModelError
from curator.ingest.workers import Recipe, Workers
from curator.models import find_checkpoint
from tests.stores import CORPUS, FIELDS, SIZE, add, contents

pytestmark = pytest.mark.slow


def recipe_of(built: Path) -> Recipe:
    return Recipe(
        find_checkpoint(str(demo.MODEL), None), "float32", next(built.glob("spaces/*/projection.safetensors")), 8192
    )


def test_two_devices_make_the_store_that_one_makes(built: Path, tmp_path: Path):
    """Ids, keys and segments are equal; values up to the rounding of other thread counts."""
    with Curator.open(built, create=False, device="cpu") as one:
        expected = contents(one)
    with Curator.open(tmp_path / "store", device="cpu,cpu") as two:
        report = add(two, tmp_path / "corpus.jsonl", CORPUS[:SIZE], id_field="id", segment_tokens=200)
        found = contents(two)
        assert two.verify()["problems"] == []
    assert (report.added, report.quarantined) == (SIZE, 0)
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    assert [item[2] for item in found] == pytest.approx([item[2] for item in expected], rel=1e-3, abs=1e-3)


def test_a_device_that_is_not_there_is_one_clear_error(built: Path):
    with (
        pytest.raises(ModelError, match=r"device 'cuda:99' cannot be used here"),
        Workers(["cpu", "cuda:99"], recipe_of(built), lambda samples, tokens: None),
    ):
        pass


def test_a_worker_that_dies_is_named_and_what_is_committed_stays(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def submit_and_kill(self: Workers, samples: list) -> object:
        wait = submit(self, samples)
        for process in self._processes:
            for pid in list(process._processes or {}):
                os.kill(pid, signal.SIGKILL)
        return wait

    submit = Workers.submit
    monkeypatch.setattr(Workers, "submit", submit_and_kill)
    with Curator.open(tmp_path / "store", device="cpu,cpu") as curator:
        with pytest.raises(CuratorError, match="worker process on cpu died"):
            add(curator, tmp_path / "corpus.jsonl", CORPUS[:20], segment_tokens=100)
        monkeypatch.undo()
        assert curator.verify()["problems"] == []
        assert curator.ingest(tmp_path / "corpus.jsonl", dataset="demo", **FIELDS).num_samples == 20
