"""The space an ingest or a query works in: recipe, model and projection that belong together."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from curator.errors import CuratorError, ModelError, SpaceError, UsageError
from curator.metadata.spaces import space_for_recipe
from curator.metadata.tables import Space
from curator.models import (
    CausalLM,
    Checkpoint,
    Encoder,
    Positions,
    check_tokenizer,
    find_checkpoint,
    hashes_of,
    load_tokenizer,
    own_template,
    pick_device,
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
    "space_without_loading",
]

_DEFAULT_MAX_LENGTH = 2048


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
    checkpoint: Checkpoint
    files: dict[str, Any]

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
    files: dict[str, Any], *, positions: str, max_length: int, dtype: str, chat_template: str | None = None
) -> dict[str, Any]:
    """Everything that decides a sample's representation, but for the projection; an adapter only where there is one.

    A chat template stands in it where one was given in the place of the model's own, which is among its files.
    """
    given = {} if chat_template is None else {"chat_template": chat_template}
    return given | {
        **hashes_of(files),
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
    adapter: str | None = None,
) -> LoadedModel:
    """Loads the model of an ingest; what was not chosen is taken from the newest space of the same model."""
    spaces = sorted(known_spaces, key=lambda space: -space.id)
    adapter_revision = None
    if model is None and adapter is None:
        if not spaces:
            raise UsageError("the store holds no space yet: --model is needed, a directory or a name on the hub")
        model, revision = spaces[0].model, spaces[0].revision
        adapter, adapter_revision = _adapter_of(spaces[0])
    checkpoint = find_checkpoint(model, revision, adapter, adapter_revision)
    files = checkpoint.stamps(_known(checkpoint, spaces))
    hashes = hashes_of(files)
    same = [s for s in spaces if s.recipe["model"] == hashes["model"]]
    # An adapter that is new here starts from what the spaces of its base have: the two can then be compared.
    same.sort(key=lambda space: space.recipe.get("adapter") != hashes.get("adapter"))
    before = same[0].recipe if same else {}
    lm = checkpoint.load(device=device, dtype=options.dtype or before.get("dtype", "auto"))
    default = min(lm.context or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
    max_length = before.get("max_length", default) if options.max_length is None else options.max_length
    if lm.context is not None and max_length > lm.context:
        raise UsageError(f"--max-length {max_length} is beyond the model's context of {lm.context} tokens")
    positions = options.positions or before.get("positions", "response")
    template = before.get("chat_template") if options.chat_template is None else options.chat_template
    if template is not None and template == own_template(load_tokenizer(checkpoint.tokenizer)):
        template = None
    recipe = recipe_of(files, positions=positions, max_length=max_length, dtype=lm.dtype, chat_template=template)
    encoder = _encoder(checkpoint.tokenizer, recipe, lm.vocab_size)
    check_tokenizer(encoder.tokenizer, lm)
    return LoadedModel(lm, encoder, recipe, checkpoint, files)


def _adapter_of(space: Space) -> tuple[str | None, str | None]:
    adapter = space.model_files.get("adapter", {})
    return adapter.get("name"), adapter.get("revision")


def _known(checkpoint: Checkpoint, spaces: Iterable[Space]) -> dict[str, Any]:
    """The newest stamps of the same model, and of the same adapter, which other spaces may have."""
    known: dict[str, Any] = next((s.model_files for s in spaces if s.model == checkpoint.name), {})
    name = checkpoint.adapter and checkpoint.adapter.name
    adapter: dict[str, Any] = next((s.model_files["adapter"] for s in spaces if name and _adapter_of(s)[0] == name), {})
    return known | {"adapter": adapter}


def space_without_loading(
    session: Session, model: str | None, revision: str | None, adapter: str | None, options: SpaceOptions
) -> Space | None:
    """The space that `load_for_ingest` would lead to, where that can be told from files and database alone."""
    spaces = list(session.scalars(sa.select(Space).order_by(Space.id.desc())))
    try:
        if model is not None or adapter is not None:
            at = find_checkpoint(model, revision, adapter)
            over = (None, None) if at.adapter is None else (at.adapter.name, at.adapter.revision)
            spaces = [s for s in spaces if (s.model, s.revision) == (at.name, at.revision) and _adapter_of(s) == over]
        if not spaces:
            return None
        space = spaces[0]
        if not ModelOfSpace(space, device="cpu").checkpoint.directory.is_dir():  # raises where its files are others
            return None
    except CuratorError:
        return None
    chosen = {name: value for name, value in asdict(options).items() if value is not None}
    return space if all(space.recipe.get(name) == value for name, value in chosen.items()) else None


class ModelOfSpace:
    """The model of a space, for queries. Files are checked, tokenizer and weights loaded, when they are first needed:
    a saved query needs none of them, and the texts of tokens no weights."""

    def __init__(self, space: Space, *, device: str, model: str | None = None, adapter: str | None = None):
        """`model`, `adapter`: where they lie now, if they have moved."""
        self._space = space
        self._given, self._given_adapter = model, adapter
        self.device = pick_device(device)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Where it lies. Raises ModelError for none, SpaceError when its files are no longer those of the space."""
        space, name = self._space, self._space.fingerprint[:12]
        adapter, revision = _adapter_of(space)
        place = space.model + (f" with adapter {adapter}" if adapter else "")
        try:
            found = find_checkpoint(
                self._given or space.model, space.revision, self._given_adapter or adapter, revision
            )
        except UsageError:
            raise
        except Exception as error:
            flags = "--model and --adapter" if adapter else "--model"
            raise ModelError(
                f"the model of space {name} is no longer at {place} ({error}); give its place with {flags}"
            ) from error
        is_moved = self._given is not None or self._given_adapter is not None
        hashes = hashes_of(found.stamps(None if is_moved else space.model_files))
        for part in ("model", "adapter"):
            ours, theirs = hashes.get(part, {}), space.recipe.get(part, {})
            if ours != theirs:
                changed = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
                at = found.adapter if part == "adapter" and found.adapter else found
                raise SpaceError(
                    f"the {part} at {at.directory} is not the one of space {name} "
                    f"(different: {', '.join(changed)}); ingest with it to make a space of its own, or restore it"
                )
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """Its tokenizer, with the length limit and the counted positions of the space."""
        return _encoder(self.checkpoint.tokenizer, self._space.recipe, self._space.projection["vocab_size"])

    @cached_property
    def lm(self) -> CausalLM:
        """The model itself."""
        lm = self.checkpoint.load(device=str(self.device), dtype=self._space.recipe["dtype"])
        check_tokenizer(self.encoder.tokenizer, lm)
        return lm


def _encoder(directory: Path, recipe: dict[str, Any], vocab_size: int) -> Encoder:
    return Encoder(
        load_tokenizer(directory),
        max_length=recipe["max_length"],
        vocab_size=vocab_size,
        positions=recipe["positions"],
        chat_template=recipe.get("chat_template"),
    )


def add_space(store: Store, session: Session, loaded: LoadedModel, projection: Projection) -> Space:
    """Commits a new space: its files first, then its row."""
    space = Space(
        **publish_projection(store, loaded.recipe, projection),
        recipe_hash=loaded.recipe_hash,
        recipe=loaded.recipe,
        model=loaded.checkpoint.name,
        revision=loaded.checkpoint.revision,
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
