"""PEFT adapters (LoRA and its kin): small weights over a base model, merged into it for the forward pass.

Merged, a model is as fast as its base, and its output embeddings are one matrix again, which is what a head is. That
merging changes nothing but rounding is checked whenever an adapter is loaded.
"""

import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch

from curator.errors import ModelError, UsageError

__all__ = ["adapted", "base_of", "is_adapter", "tokenizer_directory"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What can be merged: a change of weights. Prompt and prefix tuning put positions in front of every sample instead.
_MERGED = ("LORA", "LOHA", "LOKR", "IA3")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_PROBE_TOKENS = 32


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no model. Raises UsageError when it holds both."""
    if not (directory / _CONFIG).is_file():
        return False
    if (directory / "config.json").is_file() and any(directory.glob("model*.safetensors")):
        raise UsageError(
            f"{directory} holds a model and an adapter; put the adapter's files into a folder of their own"
        )
    return True


def base_of(directory: Path) -> tuple[str, str | None]:
    """The base model that an adapter was trained on and its revision. Raises ModelError when it names none."""
    config = _config(directory)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"the adapter at {directory} does not name its base; give the base with --model")
    return str(base), config.get("revision")


def tokenizer_directory(base: Path, adapter: Path | None) -> Path:
    """Where the tokenizer lies: with the adapter if it has one of its own, else with the base."""
    has_own = adapter is not None and any((adapter / name).is_file() for name in _TOKENIZERS)
    return adapter if adapter is not None and has_own else base


def adapted(model: Any, directory: Path) -> Any:
    """The base model with the adapter merged into it; the base itself is changed.

    Raises ModelError for an adapter that is broken, belongs to another base, or cannot be merged exactly.
    """
    _check(directory, _config(directory))
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelError("adapters need peft; install it: pip install 'forvalue-curator[peft]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever they warn of is checked below
            _resize(model, directory)
            config = PeftConfig.from_pretrained(str(directory), local_files_only=True)
            config.inference_mode = True
            wrapped = PeftModel(model, config)
            loaded = wrapped.load_adapter(str(directory), "default", torch_device="cpu", local_files_only=True)
    except Exception as error:  # as many types as there are ways for somebody's files to be wrong
        raise ModelError(f"the adapter at {directory} does not fit {type(model).__name__}: {_line(error)}") from error
    _refuse_wrong_keys(directory, loaded, wrapped)
    return _merged(wrapped.eval(), directory)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / _CONFIG
    if not path.is_file():
        raise ModelError(f"no adapter in {directory}: {_CONFIG} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not the configuration of an adapter")
    return config


def _check(directory: Path, config: dict[str, Any]) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind not in _MERGED:
        raise ModelError(
            f"the adapter at {directory} is of type {kind}, which is not supported; supported are "
            f"{', '.join(_MERGED)}, which change weights and put no positions of their own before a sample"
        )
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(f"the adapter at {directory} is for {task}, not for a causal language model (CAUSAL_LM)")
    if not (directory / _WEIGHTS).is_file():
        raise ModelError(f"the adapter at {directory} has no weights: {_WEIGHTS} is missing")


def _resize(model: Any, directory: Path) -> None:
    """As many embeddings as the adapter brings, where it was trained with tokens added; its own then replace them."""
    from safetensors import safe_open

    ends = _ends(model)
    names = {name for name, module in model.named_modules() if any(module is end for end in ends)}
    rows: dict[str, int] = {}
    with safe_open(directory / _WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            for name in names:
                if key.endswith((f"{name}.weight", f"{name}.base_layer.weight")):
                    rows[name] = file.get_slice(key).get_shape()[0]
    if not rows or set(rows.values()) == {ends[0].num_embeddings}:
        return
    is_tied = ends[0].weight is ends[1].weight
    if len(set(rows.values())) > 1 or (rows.keys() != names and not is_tied):
        raise ValueError(
            f"it changes the number of tokens to {max(rows.values()):,} and does not bring both "
            "embeddings of that size; save it again with save_embedding_layers=True"
        )
    model.resize_token_embeddings(max(rows.values()), mean_resizing=False)


def _refuse_wrong_keys(directory: Path, loaded: Any, wrapped: Any) -> None:
    from peft.utils import get_peft_model_state_dict

    if loaded.unexpected_keys:
        raise ModelError(
            f"the adapter at {directory} is of another base: {len(loaded.unexpected_keys)} of its tensors have no "
            f"place in {type(wrapped.get_base_model()).__name__}, the first is {sorted(loaded.unexpected_keys)[0]}"
        )
    from safetensors import safe_open

    with safe_open(directory / _WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missing = sorted(get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys() - given)
    if missing:
        raise ModelError(
            f"the adapter at {directory} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}"
        )


@torch.no_grad()
def _merged(wrapped: Any, directory: Path) -> Any:
    """The base with the adapter in its weights. Raises ModelError where that does not compute what the adapter does."""
    base = wrapped.get_base_model()
    rows = base.get_input_embeddings().weight.shape[0]
    ids = torch.arange(_PROBE_TOKENS, device=wrapped.device)[None].remainder(rows).flip(1)
    before = wrapped(input_ids=ids, use_cache=False).logits.float()
    if not torch.isfinite(before).all():
        raise ModelError(f"the adapter at {directory} makes logits that are not finite")
    _untie(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = wrapped.merge_and_unload()
    after = merged(input_ids=ids, use_cache=False).logits.float()
    eps = torch.finfo(merged.dtype).eps
    apart = (after - before).abs().max().item() / (before.std().item() or 1.0)
    if apart > max(1e-3, 16 * eps):
        raise ModelError(
            f"the adapter at {directory} cannot be merged exactly in {str(merged.dtype).removeprefix('torch.')}: "
            f"logits differ by {apart:.2g} of their spread; try --dtype float32"
        )
    return merged


def _untie(base: Any) -> None:
    """Parts embeddings and unembedding that share a tensor, so that what is merged into one stays out of the other."""
    ends = [_innermost(base.get_input_embeddings()), _innermost(base.get_output_embeddings())]
    is_changed = any(end is not inner for end, inner in zip(_ends(base), ends, strict=True))
    if is_changed and ends[0].weight is ends[1].weight:
        ends[1].weight = torch.nn.Parameter(ends[1].weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False


def _ends(base: Any) -> tuple[Any, Any]:
    return base.get_input_embeddings(), base.get_output_embeddings()


def _innermost(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
