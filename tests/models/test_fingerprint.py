"""What a model is, by the contents of its files."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from curator.errors import ModelError
from curator.models import hash_model_files
from tests.models.tiny import save_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny(tmp_path_factory.mktemp("saved"))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "model.safetensors.index.json").write_text("{}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    return directory


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def contents(directory: Path) -> dict[str, str]:
    return {name: stamp["sha256"] for name, stamp in hash_model_files(directory).items()}


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    ],
)
def test_any_changed_byte_changes_the_hash_of_its_file_alone(model: Path, name: str) -> None:
    before = contents(model)
    flip_last_byte(model / name)
    after = contents(model)
    assert {key for key in before if before[key] != after[key]} == {name}


def test_a_file_more_or_less_changes_the_fingerprint(model: Path) -> None:
    before = contents(model)
    (model / "tokenizer.model").write_bytes(b"pieces")
    assert contents(model).keys() - before.keys() == {"tokenizer.model"}
    (model / "chat_template.jinja").unlink()
    assert before.keys() - contents(model).keys() == {"chat_template.jinja"}


def test_a_moved_directory_with_unrelated_files_is_the_same_model(model: Path, tmp_path: Path) -> None:
    before = contents(model)
    moved = model.rename(tmp_path / "elsewhere")
    (moved / "README.md").write_text("about")
    (moved / "optimizer.pt").write_bytes(b"state")
    (moved / "pytorch_model.bin").write_bytes(b"not read beside safetensors")
    (moved / "checkpoints.model").mkdir()
    assert contents(moved) == before


def test_hashes_are_sha256_sorted_by_name(model: Path) -> None:
    stamps = hash_model_files(model)
    assert list(stamps) == sorted(stamps)
    for name, stamp in stamps.items():
        data = (model / name).read_bytes()
        assert (stamp["sha256"], stamp["num_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_known_stamp_spares_reading_and_a_stale_one_does_not(model: Path) -> None:
    """Proved by a content that changes under a kept stamp: its hash stays the old one."""
    known = hash_model_files(model)
    weights = model / "model.safetensors"
    flip_last_byte(weights)
    os.utime(weights, ns=(0, known["model.safetensors"]["mtime_ns"]))
    assert hash_model_files(model, known) == known
    os.utime(weights, ns=(0, known["model.safetensors"]["mtime_ns"] + 1))
    assert hash_model_files(model, known)["model.safetensors"] == hash_model_files(model)["model.safetensors"]
    assert hash_model_files(model, known)["model.safetensors"]["sha256"] != known["model.safetensors"]["sha256"]


def test_pickled_weights_count_where_there_is_nothing_else(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pytorch_model.bin" in contents(model)


def test_a_directory_without_weights_is_an_error(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        hash_model_files(model)
