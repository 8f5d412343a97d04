#!/usr/bin/env python
"""Train the small language model of the demo that ships with the package.

It is trained on correct text only: random draws of the six tasks of scripts/make_demo_corpus.py, with the loss on every
token of <s> prompt response </s>. The draws overlap with the corpus (prompts of the corpus occur there with their right
answers); the prompts of the validation files and of the held-out accuracy test do not occur. Facts do recur in other
wordings, so that for capitals, groups and opposites held out means a new wording of a known fact.

Training smooths the labels: a model sure of every answer makes no errors on right ones, and values are products of
errors. Smoothed by 0.1 it still answers right, and keeps an error of about 0.1 on each answer.

The weights repeat on one machine (one thread, fixed seed), while another CPU may round differently.

    python scripts/train_demo_model.py                 # about three minutes on one core
"""

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from make_demo_corpus import DEMO, SEED, TASKS, corpus_rows, held_out_rows, training_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

IGNORED = -100  # label of padding


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the texts."""

    seed: int
    vocab_size: int
    num_steps: int
    batch_size: int
    lr: float
    smoothing: float


def tokenizer_texts(seed: int = SEED) -> list[str]:
    """Return the text for the tokenizer: training rows, and every answer often enough to become a single token.

    An answer in several pieces would be valued mostly by how its pieces continue, not by what it says.
    """
    rows = list(islice(training_rows(seed), 12_000))
    return [row["prompt"] + row["response"] for row in rows] + sorted({row["response"] for row in rows}) * 100


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose digits stay single; encoding puts <s> in front and leaves </s> to the caller."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained float32 Llama with tied embeddings, small enough to ship."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> list[tuple[list[int], int]]:
    """Return the ids of <s> prompt response </s> of each row, with the position where the response begins."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    responses = tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    return [
        (prompt + response + [tokenizer.eos_token_id], len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def collate(sequences: list[list[int]], starts: list[int], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad sequences to ids [B, T] and labels [B, T]; only positions from each start on carry a label."""
    length = max(map(len, sequences))
    ids_BT = torch.full((len(sequences), length), pad_id)
    labels_BT = torch.full((len(sequences), length), IGNORED)
    for b, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids_BT[b, : len(sequence)] = torch.tensor(sequence)
        labels_BT[b, start : len(sequence)] = ids_BT[b, start : len(sequence)]
    return ids_BT, labels_BT


def loss_of(
    model: LlamaForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the mean cross-entropy over the labelled positions; right padding needs no attention mask."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Train in place: AdamW, short warm-up, then cosine decay to a tenth of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.05)
    stream = training_rows(recipe.seed)
    begin = time.perf_counter()
    for step in range(recipe.num_steps):
        progress = step / recipe.num_steps
        scale = min((step + 1) / 50, 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * scale
        sequences = [ids for ids, _ in encode(tokenizer, list(islice(stream, recipe.batch_size)))]
        batch = collate(sequences, [0] * len(sequences), tokenizer.pad_token_id)
        loss = loss_of(model, *batch, smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:5d}  loss {loss.item():.3f}  {time.perf_counter() - begin:.0f} s", flush=True)


@torch.no_grad()
def response_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> float:
    """Return the mean loss over the response tokens and </s> of all rows."""
    encoded = encode(tokenizer, rows)
    batch = collate([ids for ids, _ in encoded], [start for _, start in encoded], tokenizer.pad_token_id)
    return loss_of(model, *batch).item()


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> float:
    """Return the share of rows whose whole answer and </s> are the model's greedy choice.

    Teacher forcing decides this: greedy decoding gives the answer exactly when every argmax along it is right.
    """
    encoded = encode(tokenizer, rows)
    ids_BT, labels_BT = collate([ids for ids, _ in encoded], [start for _, start in encoded], tokenizer.pad_token_id)
    chosen_BT = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].argmax(-1)
    is_right_BT = (chosen_BT == labels_BT[:, 1:]) | (labels_BT[:, 1:] == IGNORED)
    return is_right_BT.all(1).float().mean().item()


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Print accuracy on held-out rows and the loss on held-out, right and wrong rows, per task."""
    corpus = corpus_rows(seed)
    print(f"{'task':12s}{'accuracy':>10s}{'held-out loss':>15s}{'corpus right':>14s}{'corpus wrong':>14s}")
    for task in TASKS:
        held_out = held_out_rows(task, seed)
        groups = [held_out] + [
            [row for row in corpus if row["task"] == task.name and row["is_wrong"] is flag] for flag in (False, True)
        ]
        losses = [response_loss(model, tokenizer, rows) for rows in groups]
        print(
            f"{task.name:12s}{accuracy(model, tokenizer, held_out):10.2f}{losses[0]:15.3f}"
            f"{losses[1]:14.3f}{losses[2]:14.3f}"
        )


def write_model(folder: Path, recipe: Recipe) -> None:
    """Train tokenizer and model, print what was learnt, and save both."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(tokenizer_texts(recipe.seed), recipe.vocab_size)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, recipe)
    model.eval()
    report(model, tokenizer, recipe.seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, and a wheel would carry that on
    print(f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB in {folder.name}/")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the model of the bundled demo.")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write model/ into (default: curator/demo)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--vocab-size", type=int, default=1152)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    return parser.parse_args()


def main() -> None:
    """Parse the command line and write the model."""
    args = parse_args()
    logging.disable_progress_bar()
    recipe = Recipe(args.seed, args.vocab_size, args.steps, args.batch_size, args.lr, args.smoothing)
    write_model(args.out / "model", recipe)


if __name__ == "__main__":
    main()
