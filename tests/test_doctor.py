"""Doctor: says what is there, and what is wrong, for each thing that can be."""

import json
from typing import Any

import pytest
import torch

from curator.doctor import examine
from index.errors import FaissMissingError


def test_a_sound_installation_has_no_problem(run: Any):
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    assert (code, err, found["problems"]) == (0, "", [])
    assert found["facts"]["torch"] == torch.__version__
    assert {"python", "sqlite", "faiss", "faiss build", "device"} <= set(found["facts"])
    assert run("doctor")[1].splitlines()[0].split()[0] == "curator"


@pytest.mark.parametrize(
    ("owners", "problem"),
    [([], "no faiss: pip install"), (["faiss-cpu", "faiss-gpu"], "faiss-cpu and faiss-gpu both own the folder faiss/")],
)
def test_none_or_two_faiss_packages_are_a_problem(monkeypatch: pytest.MonkeyPatch, owners: list[str], problem: str):
    version = __import__("importlib.metadata").metadata.version
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"faiss": owners})
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0" if name in owners else version(name))
    assert any(problem in line for line in examine()["problems"])


def test_a_faiss_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise FaissMissingError from ImportError("libfaiss.so: not found")

    monkeypatch.setattr("index.faiss_index.load_faiss", broken)
    assert "faiss does not import: libfaiss.so: not found" in examine()["problems"]


def test_an_old_sqlite_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 30, 0))
    assert any("older than 3.35" in line for line in examine()["problems"])


def test_a_cuda_build_without_its_device_is_told_and_no_problem(monkeypatch: pytest.MonkeyPatch, run: Any):
    """PyPI's torch for Linux is a CUDA build: on a machine without a GPU it works, only slower than one may expect."""
    monkeypatch.setattr("torch.version.cuda", "12.6")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, _ = run("doctor")
    assert code == 0
    assert "torch is built for 12.6, but sees no GPU" in out
