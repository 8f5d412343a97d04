"""What a model is, by the contents of its files: the part of a space that weights, tokenizer and template make."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from curator.errors import ModelError

__all__ = ["FileStamp", "hash_model_files"]

# Weights, of which the loader prefers safetensors: the others do not count beside them.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TEXTS = (
    "config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.tiktoken",
    "*.model",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


class FileStamp(TypedDict):
    """A hashed file and the stamp under which the hash may be trusted without reading it again."""

    sha256: str
    num_bytes: int
    mtime_ns: int


def hash_model_files(directory: Path, known: Mapping[str, FileStamp] | None = None) -> dict[str, FileStamp]:
    """SHA-256 of every file that decides what the model computes: {name: stamp}, sorted by name.

    A file whose size and modification time are those of `known` is not read again.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in _model_files(directory))
    return {name: _stamp(directory / name, (known or {}).get(name)) for name in names}


def _model_files(directory: Path) -> set[Path]:
    weights: list[Path] = []
    for pattern in _WEIGHTS:
        weights = weights or list(directory.glob(pattern))
    if not weights:
        raise ModelError(f"no weights (*.safetensors) in {directory}")
    return {*weights, *(path for pattern in _TEXTS for path in directory.glob(pattern) if path.is_file())}


def _stamp(path: Path, known: FileStamp | None) -> FileStamp:
    stat = path.stat()
    if known and (known["num_bytes"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileStamp(sha256=digest, num_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
