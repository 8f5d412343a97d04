"""A causal language model of the Hugging Face hub, forward only."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curator.errors import ModelError, NotFoundError
from curator.models.adapter import adapted
from curator.models.head import Head, backbone, find_head
from curator.types import EncodedSample

__all__ = ["CausalLM", "CountedHidden", "check_tokenizer", "load_limits", "load_tokenizer", "locate", "pick_device"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a model directory needs to be loaded; anything else in a repository stays there.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class CountedHidden:
    """Last hidden states of the counted positions of a batch, on the model's device.

    hidden [K, D] in the model's dtype: row k is the state that predicts labels[k]; labels int64 [K];
    counts: counted tokens of each sample in batch order, summing to K.
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    counts: list[int]


def locate(model: str, revision: str | None = None) -> Path:
    """The local directory of a model: a directory as it is, else a hub name, downloaded once into the hub's cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise NotFoundError(f"no model directory at {model}")
    from huggingface_hub import snapshot_download  # deferred: 0.2 s that a local model does not need

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:
        # The hub client raises a dozen types from three libraries; all of them mean that there is no such model here.
        raise NotFoundError(
            f"model {model!r} is neither a directory nor reachable on the hub: {_one_line(error)}"
        ) from error


def pick_device(device: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU (Apple's has no float64, which calibration needs)."""
    if device != "auto":
        try:
            picked = torch.device(device)
            torch.zeros(1, device=picked).item()
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {device!r} cannot be used here: {_one_line(error)}") from error
        return picked
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory. Raises ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as many types as there are ways for somebody's files to be wrong
        raise ModelError(f"no usable tokenizer in {directory}: {_reason(error)}") from error


def load_limits(directory: Path) -> tuple[int | None, int]:
    """(the longest sequence, the number of tokens) of a model, by its configuration alone: a first look, no weights.

    Raises ModelError when there is no usable configuration.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True).get_text_config()
        return _context(config), int(config.vocab_size)
    except Exception as error:  # as many types as there are ways for somebody's files to be wrong
        raise ModelError(f"no usable configuration in {directory}: {_reason(error)}") from error


class CausalLM:
    """A causal language model that yields last hidden states at counted positions, and its head."""

    def __init__(self, model: Any, device: torch.device):
        self.device = device
        self._model = model.to(device).eval().requires_grad_(False)
        try:
            self.head: Head = find_head(self._model, device)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{type(model).__name__} does not run over plain token ids: {_one_line(error)}") from error

    @classmethod
    def load(
        cls, directory: Path, *, device: str = "auto", dtype: str = "auto", adapter: Path | None = None
    ) -> "CausalLM":
        """Loads the checkpoint of a directory, never with remote code. `dtype` auto is the checkpoint's own.

        `adapter`: the directory of a PEFT adapter, which is merged into it.

        Raises NotFoundError when there is no such directory, ModelError when it holds no complete causal model.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        if dtype != "auto" and dtype not in _DTYPES:
            raise ModelError(f"dtype {dtype!r} is not known; use auto, {', '.join(_DTYPES)}")
        if not directory.is_dir():
            raise NotFoundError(f"no model directory at {directory}")
        picked = pick_device(device)
        logging.disable_progress_bar()
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=_DTYPES.get(dtype, "auto"),
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report has them, by name
            )
        except Exception as error:  # as many types as there are ways for somebody's files to be wrong
            raise ModelError(f"no usable causal language model in {directory}: {_reason(error)}") from error
        model, report = loaded
        # The loader fills what it does not find with random numbers: a base model's head, for one.
        random = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
        if random:
            raise ModelError(
                f"no complete causal language model in {directory}: {len(random)} tensors of {type(model).__name__} "
                f"are missing or of another shape, the first is {random[0]}"
            )
        if adapter is not None:
            model = adapted(model, adapter)
        return cls(model, picked)

    @property
    def dtype(self) -> str:
        """The dtype of the forward pass, as it enters the space."""
        return str(self.head.weight.dtype).removeprefix("torch.")

    @property
    def context(self) -> int | None:
        """The longest sequence the model was built for, where its configuration says so."""
        return _context(self._model.config.get_text_config())

    @property
    def vocab_size(self) -> int:
        """Token ids must be below it: rows of the input embeddings, or of the output embeddings if these are fewer."""
        return min(int(self._model.get_input_embeddings().num_embeddings), self.head.vocab_size)

    @torch.inference_mode()
    def hidden(self, batch: Sequence[EncodedSample]) -> CountedHidden:
        """One forward pass, right-padded; only the states that predict a counted token come back.

        Without an attention mask: `find_head` has made sure that the model does not look to the right, where the
        padding is, and attention that knows it is causal is faster than one that reads a mask.
        """
        ids, _, counted = _pad(batch)
        ids = _to(ids, self.device)
        states = backbone(self._model)(ids, use_cache=False).last_hidden_state
        predicts = _to(counted[:, 1:], self.device)
        return CountedHidden(states[:, :-1][predicts], ids[:, 1:][predicts], counted.sum(1).tolist())

    @torch.inference_mode()
    def forward(self, batch: Sequence[EncodedSample]) -> torch.Tensor:
        """Plain `model(**batch).logits` on the same padded batch: the floor that benchmarks compare with."""
        ids, mask, _ = _pad(batch)
        logits: torch.Tensor = self._model(
            ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
        ).logits
        return logits


def check_tokenizer(tokenizer: Any, model: CausalLM) -> None:
    """Raises ModelError when plain text, or what is put around it, can become token ids that the model does not know.

    Tokens added later and never embedded (a padding token, say) are no reason: a sample that holds one is a bad row.
    """
    around = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    highest = max(tokenizer.vocab_size - 1, *around, *tokenizer("")["input_ids"], 0)
    if highest >= model.vocab_size:
        raise ModelError(
            f"the tokenizer makes token ids up to {highest:,}, but the model knows {model.vocab_size:,} tokens; "
            "use the tokenizer that the model was trained with"
        )


def _pad(batch: Sequence[EncodedSample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(sample.num_tokens for sample in batch)
    # Any id pads: right padding under an attention mask cannot reach a counted position.
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros(len(batch), longest, dtype=torch.int64)
    counted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for i, sample in enumerate(batch):
        ids[i, : sample.num_tokens] = torch.from_numpy(sample.input_ids)
        mask[i, : sample.num_tokens] = 1
        counted[i, : sample.num_tokens] = torch.from_numpy(sample.counted)
    return ids, mask, counted


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that the copy does not wait for the GPU's work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _context(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit) if limit else None


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):  # the loader's own advice is to run that code
        return "it needs Python code from its own repository, which is never run here"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
