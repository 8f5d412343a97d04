"""The unembedding: from last hidden states to prediction errors.

With logits z = f(u), u = W h + b, and f the architecture's own scaling and softcap, the prediction error of label y is

    e = f'(u) * (onehot(y) - softmax(z))

which is minus the gradient of the loss with respect to the raw head output u (For-Value, arXiv 2508.10180, section 3;
the factor f' is 1 for most architectures). Shapes: K counted tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch

from curator.errors import ModelError

__all__ = ["Head", "backbone", "find_head"]

# Powers of two, exact in every dtype: so small that a softcap leaves it alone, so large that a softcap swallows it.
_SMALL, _LARGE = 2.0**-10, 2.0**15
_PROBE_TOKENS = 16
_LIKELY_ENOUGH = 1e-30  # of a float32 probability, to take the logarithm of it


@dataclass(frozen=True)
class Head:
    """The output embeddings with the architecture's logit function: z = softcap * tanh(scale * u / softcap)."""

    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        """V: the rows of the unembedding, padding rows included, as the model's own softmax does."""
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.weight.shape[1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [..., V] of hidden states [..., D], equal to what the model itself returns."""
        return self.squash(self.raw(hidden).float())

    def raw(self, hidden: torch.Tensor) -> torch.Tensor:
        """u = W h + b [..., V] of hidden states [..., D], in the dtype of W."""
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def squash(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits f(u) of raw head outputs u, overwriting them."""
        if self.scale != 1.0:
            raw *= self.scale
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)
        return raw

    def errors(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction errors [..., V] and losses in nats [...] of labels [...], in float32, in one [..., V] buffer."""
        logits = self.logits(hidden)
        slope = self._slope(logits)
        at_label = labels.unsqueeze(-1)
        errors = torch.softmax(logits, dim=-1, out=logits if not logits.requires_grad else None)
        likelihood = errors.gather(-1, at_label)
        losses = -likelihood.log().squeeze(-1)
        # A label far behind the likeliest token underflows: only there the loss is worth another look at the logits.
        unlikely = likelihood.squeeze(-1) < _LIKELY_ENOUGH
        if unlikely.any():
            again = self.logits(hidden[unlikely])
            losses[unlikely] = torch.nn.functional.cross_entropy(again, labels[unlikely], reduction="none")
        errors = errors.neg_().scatter_(-1, at_label, 1.0 - likelihood)
        if slope is not None:
            errors *= slope
        elif self.scale != 1.0:
            errors *= self.scale
        return errors, losses

    def _slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        if self.softcap is None:
            return None
        return (1.0 - (logits / self.softcap).square()) * self.scale


def backbone(model: Any) -> Any:
    """The part of a model that ends in its last hidden states."""
    # The text-only Llama 4 has its base model elsewhere than it says.
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def find_head(model: Any, device: torch.device) -> Head:
    """The head whose logits equal the model's own, found by running the model over a few tokens.

    Raises ModelError when the model is not causal, or when its logits are not f(W h + b) of its last hidden states with
    an f that Head knows: a value computed from them would be wrong.
    """
    name = type(model).__name__
    embeddings = model.get_output_embeddings()
    if embeddings is None or backbone(model) is model:
        raise ModelError(
            f"{name} has no output embeddings over a vocabulary; "
            "use a causal language model (a base checkpoint without its head cannot be valued)"
        )
    bias = getattr(embeddings, "bias", None)
    head = Head(embeddings.weight.detach(), None if bias is None else bias.detach())
    half = min(_PROBE_TOKENS, head.vocab_size) // 2
    first, second, other = torch.arange(3 * half, device=device).remainder(head.vocab_size).flip(0).split(half)
    ids = torch.stack([torch.cat([first, second]), torch.cat([first, other])])
    with torch.no_grad():
        hidden = backbone(model)(ids, use_cache=False).last_hidden_state
        raw, head = _measure(model, embeddings, head, ids)
        ours = head.raw(hidden)
    if not torch.isfinite(hidden).all():
        raise ModelError(f"the hidden states of {name} are not finite in {hidden.dtype}; try another --dtype")
    if not _same(hidden[0, :half], hidden[1, :half]):
        raise ModelError(f"{name} reads tokens to the right of the one it predicts; use a causal language model")
    if not _same(ours, raw):
        raise ModelError(
            f"the logits of {name} are not a linear function of its last hidden states; "
            "this architecture is not supported"
        )
    return head


def _measure(model: Any, embeddings: torch.nn.Module, head: Head, ids: torch.Tensor) -> tuple[torch.Tensor, Head]:
    """What the output embeddings return for `ids`, and the head with the scale and softcap that the model applies.

    Both are read off the logits that the model makes of chosen float32 numbers in place of its own: their names and
    places differ between architectures, and a factor close to 1 drowns in the rounding of bfloat16.
    """
    seen: list[torch.Tensor] = []
    chosen = 20.0 * torch.randn(*ids.shape, head.vocab_size, generator=torch.Generator().manual_seed(0)).to(ids.device)
    chosen[0, 0, 0], chosen[0, 0, 1] = _SMALL, _LARGE

    def replace(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().clone())
        return chosen.clone()

    handle = embeddings.register_forward_hook(replace)
    try:
        logits = model(ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(seen) == 1 and seen[0].shape == logits.shape == chosen.shape:
        # Seven digits are what float32 holds: they give the configuration's own number back.
        scale, limit = float(f"{logits[0, 0, 0].item() / _SMALL:.7g}"), logits[0, 0, 1].item()
        is_linear = abs(limit - scale * _LARGE) <= 0.01 * abs(limit)
        head = Head(head.weight, head.bias, scale, None if is_linear else limit)
        tolerance = 1e-4 if logits.dtype == torch.float32 else 2 * torch.finfo(logits.dtype).eps
        if scale > 0 and limit > 0 and torch.allclose(head.squash(chosen), logits.float(), tolerance, 1e-5):
            return seen[0], head
    raise ModelError(
        f"the logits of {type(model).__name__} are not a known function of its output embeddings "
        "(as they are, scaled, softcapped); this architecture is not supported"
    )


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    # The same operations on the same numbers: bit-equal, or apart by rounding where a kernel picks its order.
    tolerance = 1e-3 if theirs.dtype == torch.float32 else 0.02
    spread = theirs.float().std().item() or 1.0
    return bool((ours.float() - theirs.float()).abs().max().item() <= tolerance * spread)
