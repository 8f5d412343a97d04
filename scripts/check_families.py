"""Families of models x what must be true of them, on tiny random models of each: prints and writes the table.

python scripts/check_families.py    # writes scripts/results/families.md

forward      logits at the counted positions against the model's own whole forward pass (vision: of what the family's
             own processor makes of the sample), largest difference
autograd     sum_k e_k h_k^T against minus the gradient of the loss with respect to the unembedding, largest difference
batch        last hidden states of a sample alone and among others, of other lengths and image sizes, in any order
chat mask    exactly the assistant's turns and their end marks count, no image position ever does
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

from curator.models import CausalLM, Encoder
from curator.types import EncodedSample, Sample
from tests.models import test_vision as vision
from tests.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from tests.models.tiny_vision import VISION_FAMILIES

LIMIT = 1e-4
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TALK = [("user", "what is the opposite of hot?"), ("assistant", "it is cold"), ("user", "and?"), ("assistant", "five")]


def of_text(family: str) -> list[float | bool]:
    """The checks of a family that reads text."""
    lm, random = CausalLM(tiny_model(family), torch.device("cpu")), np.random.default_rng(0)
    batch = [
        EncodedSample(random.integers(3, 300, n), np.arange(n) >= start)
        for n, start in ((9, 1), (24, 6), (2, 1), (12, 11))
    ]
    model = lm._model
    forward = autograd = 0.0
    for one in batch:
        counted = lm.hidden([one])
        embeddings = model.get_output_embeddings()
        kept, embeddings.weight = embeddings.weight, torch.nn.Parameter(embeddings.weight.detach().clone())
        ids = torch.from_numpy(one.input_ids)
        logits = model(ids[None], use_cache=False).logits[0, :-1][one.counted[1:]]
        cross_entropy(logits.float(), ids[1:][one.counted[1:]], reduction="sum").backward()
        gradient, embeddings.weight = embeddings.weight.grad, kept
        assert gradient is not None
        errors, _ = lm.head.errors(counted.hidden, counted.labels)
        forward = max(forward, apart(lm.head.logits(counted.hidden), logits.detach()))
        autograd = max(autograd, apart(errors.T @ counted.hidden, -gradient))
    tokenizer = tiny_tokenizer(bos=False)
    encoder = Encoder(tokenizer, max_length=64, vocab_size=lm.vocab_size, chat_template=CHATML)
    (item,) = encoder.encode([Sample(messages=[{"role": role, "content": said} for role, said in TALK])])
    assert isinstance(item, EncodedSample), item
    said = [token for role, text in TALK if role == "assistant" for token in tokenizer(f"{text}</s>")["input_ids"]]
    return [forward, autograd, together(lm, batch), item.input_ids[item.counted].tolist() == said]


def of_vision(family: str) -> list[float | bool]:
    """The checks of a family that reads images."""
    lm = vision.loaded(family)
    forward = autograd = 0.0
    for one in (vision.SAMPLES[0], vision.SAMPLES[2], vision.SAMPLES[3]):
        counted = lm.hidden(vision.encoded(family, [one]))
        logits, _, gradient = vision.whole_forward(family, one)
        errors, _ = lm.head.errors(counted.hidden, counted.labels)
        forward = max(forward, apart(lm.head.logits(counted.hidden), logits))
        autograd = max(autograd, apart(errors.T @ counted.hidden, gradient))
    is_right = True
    for number in (0, 1, 3):
        try:
            vision.test_of_a_conversation_exactly_the_answers_and_their_ends_count(family, number)
        except AssertionError:
            is_right = False
    return [forward, autograd, together(lm, vision.encoded(family, vision.SAMPLES)), is_right]


def together(lm: CausalLM, batch: list[EncodedSample]) -> float:
    """The largest difference that company makes to a sample's last hidden states."""
    alone, worst = [lm.hidden([one]).hidden for one in batch], 0.0
    for order in (list(range(len(batch))), list(range(len(batch)))[::-1]):
        found = lm.hidden([batch[at] for at in order])
        for at, part in zip(order, found.hidden.split(found.counts), strict=True):
            worst = max(worst, apart(part, alone[at]))
    return worst


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def row(kind: str, family: str, check: Callable[[str], list[float | bool]]) -> tuple[str, bool]:
    """A line of the table, and whether all of it is as it must be."""
    found = check(family)
    is_good = all(value if isinstance(value, bool) else value < LIMIT for value in found)
    cells = " | ".join(("yes" if value else "NO") if isinstance(value, bool) else f"{value:.0e}" for value in found)
    return f"| {family} | {kind} | {cells} |", is_good


def main() -> int:
    """Prints and writes the table; 1 where a check failed."""
    lines = [
        "# Families of models",
        "",
        "`python scripts/check_families.py`: tiny random models (float32), transformers "
        f"{transformers.__version__}, torch {torch.__version__}. Largest differences; below "
        "1e-4 is rounding of states and logits of the order of 1.",
        "",
        "| family | reads | forward | autograd | batch | chat mask |",
        "|---|---|---|---|---|---|",
    ]
    is_good = True
    for kind, families, check in (("text", FAMILIES, of_text), ("images and text", VISION_FAMILIES, of_vision)):
        for family in families:
            line, is_right = row(kind, family, check)
            lines.append(line)
            is_good &= is_right
            print(line, flush=True)
    (Path(__file__).parent / "results" / "families.md").write_text("\n".join(lines) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
