"""What is loaded: a model's directory, and the adapter over it where there is one; found, hashed, loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import ModelError, NotFoundError, UsageError
from curator.models.adapter import base_of, is_adapter, tokenizer_directory
from curator.models.causal_lm import CausalLM, locate
from curator.models.fingerprint import FileStamp, hash_model_files

__all__ = ["Checkpoint", "Stamps", "find_checkpoint", "hashes_of"]

Stamps = dict[str, Any]  # {file name: FileStamp}, and "adapter": {"name", "revision", "files"} where there is one


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies; `name` is a directory or a name on the hub, whose snapshot's commit is `revision`."""

    name: str
    revision: str | None
    directory: Path
    adapter: "Checkpoint | None" = None

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer: the adapter's own wins."""
        return tokenizer_directory(self.directory, self.adapter.directory if self.adapter else None)

    def load(self, *, device: str, dtype: str) -> CausalLM:
        """The model, with its adapter merged."""
        adapter = self.adapter.directory if self.adapter else None
        return CausalLM.load(self.directory, device=device, dtype=dtype, adapter=adapter)

    def stamps(self, known: Mapping[str, Any] | None = None) -> Stamps:
        """The files with their hashes; those unchanged since `known` are not read again."""
        known = known or {}
        found: Stamps = dict(hash_model_files(self.directory, known))
        if self.adapter is not None:
            files: dict[str, FileStamp] = hash_model_files(
                self.adapter.directory, known.get("adapter", {}).get("files")
            )
            found["adapter"] = {"name": self.adapter.name, "revision": self.adapter.revision, "files": files}
        return found


def find_checkpoint(
    model: str | None, revision: str | None, adapter: str | None = None, adapter_revision: str | None = None
) -> Checkpoint:
    """A model with an adapter. A `model` that is an adapter itself, or none beside one, means that adapter's base.

    Raises NotFoundError for what is not there, UsageError for two adapters, ModelError for an adapter without a base.
    """
    base = None if model is None else _found(model, revision)
    if base is not None and is_adapter(base.directory):
        if adapter is not None:
            raise UsageError(
                f"--model {model} is itself an adapter: give its base there, and one adapter with --adapter"
            )
        adapter, adapter_revision, model, base = model, revision, None, None
    over = None if adapter is None else _found_adapter(adapter, adapter_revision)
    if base is None:
        if over is None:
            raise UsageError("which model? --model is needed, a directory or a name on the hub")
        named, base_revision = base_of(over.directory)
        try:
            base = _found(named, base_revision)
        except NotFoundError as error:
            raise ModelError(
                f"the adapter {adapter} names {named!r} as its base, which is not there ({error}); "
                f"give both: --model BASE --adapter {adapter}"
            ) from error
    return Checkpoint(base.name, base.revision, base.directory, over)


def hashes_of(stamps: Stamps) -> dict[str, dict[str, str]]:
    """What of the files enters a space's recipe: {"model": {name: sha256}}, and "adapter" where there is one."""
    adapter = stamps.get("adapter")
    parts = {"model": {name: stamp for name, stamp in stamps.items() if name != "adapter"}}
    if adapter is not None:
        parts["adapter"] = adapter["files"]
    return {part: {name: stamp["sha256"] for name, stamp in files.items()} for part, files in parts.items()}


def _found(model: str, revision: str | None) -> Checkpoint:
    directory = locate(model, revision)
    if Path(model).expanduser().is_dir():
        return Checkpoint(str(directory), None, directory)
    # A hub's branch moves: the snapshot's commit, which names its directory, is what the space is made of.
    return Checkpoint(model, directory.name, directory)


def _found_adapter(adapter: str, revision: str | None) -> Checkpoint:
    try:
        found = _found(adapter, revision)
    except NotFoundError as error:
        raise NotFoundError(f"--adapter {adapter}: {error}") from error
    if not is_adapter(found.directory):
        raise ModelError(f"no adapter in {found.directory}: adapter_config.json is missing")
    return found
