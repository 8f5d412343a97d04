"""The whole path on a GPU against the same store on the CPU. Skipped where there is no CUDA device."""

from pathlib import Path

import pytest
import torch

from curator import Curator
from tests.stores import CORPUS, QUESTION, add, contents

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_samples_ingested_on_a_gpu_have_the_values_of_the_cpu(store: Path, tmp_path: Path):
    """One space, two devices: the second copy of each sample went through the GPU."""
    with Curator.open(store, create=False, device="cuda") as on_gpu:
        assert add(on_gpu, tmp_path / "b.jsonl", CORPUS[:24], dataset="again").added == 24
    with Curator.open(store, create=False, device="cpu") as on_cpu:
        values = [value for _, _, value in contents(on_cpu)]
    assert values[-24:] == pytest.approx(values[:24], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("options", [{"rerank": 0}, {"rerank": 100}, {"exact": True, "rerank": 20}])
def test_a_question_asked_on_a_gpu_has_the_answer_of_the_cpu(store: Path, options: dict):
    answers = []
    for device in ("cpu", "cuda"):
        with Curator.open(store, create=False, device=device) as curator:
            answers.append(curator.query(**QUESTION, **options, top=5, harmful=5))
    for end in ("helpful", "harmful"):
        on_cpu, on_gpu = (getattr(answer, end) for answer in answers)
        assert [item.value for item in on_gpu] == pytest.approx([item.value for item in on_cpu], rel=1e-3, abs=1e-3)


def test_two_worker_processes_share_one_gpu(store: Path, tmp_path: Path):
    with Curator.open(store, create=False, device="cuda:0,cuda:0") as curator:
        assert add(curator, tmp_path / "b.jsonl", CORPUS[:24], dataset="again", segment_tokens=200).added == 24
        assert curator.verify()["problems"] == []
