"""The space an ingest or a query works in: recipe, model and projection that belong together."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.orm import Session

from curator.errors import ModelError, SpaceError, UsageError
from curator.metadata.spaces import space_for_recipe
from curator.metadata.tables import Space
from curator.models import (
    CausalLM,
    Encoder,
    FileStamp,
    Positions,
    check_tokenizer,
    hash_model_files,
    load_tokenizer,
    locate,
    own_template,
    pick_device,
    vision_options,
)
from curator.store import PROJECTION_FILE, SPACE_FILE, Store
from index.factors import ERROR_STEP, FINEST_STEP
from index.projection import Projection
from index.stored import hash_file

__all__ = [
    "LoadedModel",
    "ModelOfSpace",
    "SpaceOptions",
    "add_space",
    "existing_space",
    "load_for_ingest",
    "publish_projection",
    "recipe_of",
]

_DEFAULT_MAX_LENGTH = 2048
_DEFAULT_MAX_LENGTH_OF_IMAGES = 8192  # one image may be 2,000 tokens
_IMAGES_VERSION = 1  # of how images are opened (curator/sources/images.py) and processed (Pillow)


@dataclass(frozen=True)
class SpaceOptions:
    """What the caller chose of a space; None means: as in the newest space of this model, else the default."""

    positions: Positions | None = None
    max_length: int | None = None
    dtype: str | None = None
    chat_template: str | None = None  # its text, in the place of the model's own


@dataclass
class LoadedModel:
    """A model in memory with its tokenizer, the recipe of its space, and where it came from."""

    lm: CausalLM
    encoder: Encoder
    recipe: dict[str, Any]
    name: str
    revision: str | None
    files: dict[str, FileStamp]
    directory: Path

    def release(self) -> None:
        """Drops the model, to make room for those of worker processes; the encoder stays."""
        del self.lm
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def recipe_hash(self) -> str:
        """What two spaces share when only their projections differ."""
        return _hash(self.recipe)


def recipe_of(
    files: dict[str, FileStamp], *, positions: str, max_length: int, dtype: str, chat_template: str | None = None
) -> dict[str, Any]:
    """Everything that decides a sample's representation, but for the projection.

    A chat template stands in it where one was given in the place of the model's own, which is among its files.
    """
    given = {} if chat_template is None else {"chat_template": chat_template}
    return given | {
        "model": {name: stamp["sha256"] for name, stamp in files.items()},
        "positions": positions,
        "max_length": max_length,
        "dtype": dtype,
        "error_step": ERROR_STEP,
        "hidden_step": FINEST_STEP,
    }


def load_for_ingest(
    model: str | None,
    revision: str | None,
    options: SpaceOptions,
    *,
    device: str,
    known_spaces: Iterable[Space],
) -> LoadedModel:
    """Loads the model of an ingest; what was not chosen is taken from the newest space of the same model."""
    spaces = sorted(known_spaces, key=lambda space: -space.id)
    if model is None:
        if not spaces:
            raise UsageError("the store holds no space yet: --model is needed, a directory or a name on the hub")
        model, revision = spaces[0].model, spaces[0].revision
    directory = locate(model, revision)
    known = next((s.model_files for s in spaces if s.model in (model, str(directory))), None)
    files = hash_model_files(directory, known)
    hashes = {name: stamp["sha256"] for name, stamp in files.items()}
    before = next((s.recipe for s in spaces if s.recipe["model"] == hashes), {})
    lm = CausalLM.load(directory, device=device, dtype=options.dtype or before.get("dtype", "auto"))
    default = _DEFAULT_MAX_LENGTH_OF_IMAGES if lm.reads_images else _DEFAULT_MAX_LENGTH
    default = min(lm.context or default, default)
    max_length = before.get("max_length", default) if options.max_length is None else options.max_length
    if lm.context is not None and max_length > lm.context:
        raise UsageError(f"--max-length {max_length} is beyond the model's context of {lm.context} tokens")
    positions = options.positions or before.get("positions", "response")
    template = before.get("chat_template") if options.chat_template is None else options.chat_template
    if template is not None and template == own_template(load_tokenizer(directory)):
        template = None
    recipe = recipe_of(files, positions=positions, max_length=max_length, dtype=lm.dtype, chat_template=template)
    if lm.reads_images:
        recipe["images"] = _IMAGES_VERSION
    is_local = Path(model).expanduser().is_dir()
    name = str(directory) if is_local else model
    # A hub's branch moves: the snapshot's commit, which names its directory, is what the space is made of.
    revision = None if is_local else directory.name
    return _loaded(lm, directory, recipe, name, revision, files)


class ModelOfSpace:
    """The model of a space, for queries. Files are checked, tokenizer and weights loaded, when they are first needed:
    a saved query needs none of them, and the texts of tokens no weights."""

    def __init__(self, space: Space, *, device: str, model: str | None = None):
        """`model`: where it lies now, if it has moved."""
        self._space = space
        self._given = model
        self.device = pick_device(device)

    @cached_property
    def directory(self) -> Path:
        """Where it lies. Raises ModelError for none, SpaceError when its files are no longer those of the space."""
        space = self._space
        try:
            directory = locate(self._given or space.model, space.revision)
        except Exception as error:
            raise ModelError(
                f"the model of space {space.fingerprint[:12]} is no longer at {space.model} ({error}); "
                "give its place with --model"
            ) from error
        files = hash_model_files(directory, space.model_files if self._given is None else None)
        hashes = {name: stamp["sha256"] for name, stamp in files.items()}
        if hashes != space.recipe["model"]:
            changed = sorted(
                k for k in hashes.keys() | space.recipe["model"].keys() if hashes.get(k) != space.recipe["model"].get(k)
            )
            raise SpaceError(
                f"the model at {directory} is not the one of space {space.fingerprint[:12]} "
                f"(different: {', '.join(changed)}); ingest with it to make a space of its own, or restore it"
            )
        return directory

    @cached_property
    def encoder(self) -> Encoder:
        """Its tokenizer, with the length limit and the counted positions of the space."""
        return _encoder(self.directory, self._space.recipe, self._space.projection["vocab_size"])

    @cached_property
    def lm(self) -> CausalLM:
        """The model itself."""
        lm = CausalLM.load(self.directory, device=str(self.device), dtype=self._space.recipe["dtype"])
        check_tokenizer(self.encoder.tokenizer, lm)
        return lm


def _encoder(directory: Path, recipe: dict[str, Any], vocab_size: int) -> Encoder:
    tokenizer = load_tokenizer(directory)
    return Encoder(
        tokenizer,
        max_length=recipe["max_length"],
        vocab_size=vocab_size,
        positions=recipe["positions"],
        chat_template=recipe.get("chat_template"),
        **vision_options(directory, tokenizer),
    )


def _loaded(
    lm: CausalLM,
    directory: Path,
    recipe: dict[str, Any],
    name: str,
    revision: str | None,
    files: dict[str, FileStamp],
) -> LoadedModel:
    encoder = _encoder(directory, recipe, lm.vocab_size)
    check_tokenizer(encoder.tokenizer, lm)
    return LoadedModel(lm, encoder, recipe, name, revision, files, directory)


def add_space(store: Store, session: Session, loaded: LoadedModel, projection: Projection) -> Space:
    """Commits a new space: its files first, then its row."""
    space = Space(
        **publish_projection(store, loaded.recipe, projection),
        recipe_hash=loaded.recipe_hash,
        recipe=loaded.recipe,
        model=loaded.name,
        revision=loaded.revision,
        model_files=loaded.files,
        created_at=datetime.now(UTC),
    )
    session.add(space)
    session.commit()
    return space


def publish_projection(store: Store, recipe: dict[str, Any], projection: Projection) -> dict[str, Any]:
    """Writes the files of a space that no row names yet: the row's fingerprint, projection and what describes it."""
    temporary = store.root / "tmp" / PROJECTION_FILE
    projection.save(temporary)
    projection_sha256 = hash_file(temporary)
    fingerprint = _hash({"recipe": recipe, "projection": _contents_hash(projection)})
    info = {
        **projection.info,
        "error_rank": projection.error_rank,
        "hidden_rank": projection.hidden_rank,
        "factor_rank": projection.factor_rank,
        "width": projection.width,
        "vocab_size": projection.vocab_size,
        "hidden_size": projection.hidden_size,
    }
    with store.publishing("spaces", fingerprint) as directory:
        temporary.rename(directory / PROJECTION_FILE)
        description = {"recipe": recipe, "projection": info, "projection_sha256": projection_sha256}
        (directory / SPACE_FILE).write_text(json.dumps(description, indent=1) + "\n")
    return {
        "fingerprint": fingerprint,
        "projection_sha256": projection_sha256,
        "projection_bytes": (store.root / "spaces" / fingerprint / PROJECTION_FILE).stat().st_size,
        "projection": info,
    }


def existing_space(session: Session, loaded: LoadedModel) -> Space | None:
    """The space of a loaded model's recipe, where the store has one."""
    return space_for_recipe(session, loaded.recipe_hash)


def _contents_hash(projection: Projection) -> str:
    # The file's own hash will not do: safetensors writes its metadata in random order.
    digest = hashlib.sha256()
    for tensor in (projection.error_basis, projection.hidden_basis, projection.rotation, projection.second_moment):
        digest.update(str(list(tensor.shape)).encode())
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _hash(thing: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()
