#!/usr/bin/env python
"""Trains a small language model with a large vocabulary on text that any Linux machine and Python installation carries.

    scripts/train_vocab_model.py --out M                       # V = 65,536, d = 128, 2 layers: about 10 minutes
    scripts/train_vocab_model.py --out M --steps 10000         # the same for longer, with the tokenizer that M has now

Text: the sources of Python's standard library, README files, licences and sources of what is installed beside it,
/usr/share/doc and /usr/share/perl; whole files are held back, and a piece of text that occurs twice is used once. M
gets the model, its byte-level BPE, and held.jsonl: pieces of the files held back, for scripts/bench_vocab.py.

The softmax over 65,536 tokens would be nine tenths of the time. Training takes it over a batch's own labels and a
thousand tokens drawn at random, corrected for how likely each was to be drawn; the loss printed at the end is over the
full vocabulary. Without a GPU the model stays weak, and it is weakest on rare tokens: there its errors are largest.
"""

import argparse
import gzip
import hashlib
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SUFFIXES = {".py", ".txt", ".md", ".rst", ".pm", ".pl", ".pod", ".gz", ""}
MAX_FILE_BYTES = 60_000  # of one file: a changelog or a table of characters must not outweigh the rest
PIECE_CHARACTERS = 400
HELD_SHARE = 20  # one file of so many is held back
HELD_PIECES, HELD_OF_ONE = 4000, 12
SEQUENCE, BATCH = 96, 24  # tokens, sequences
NEGATIVES = 1024
RATE = 4e-3
EOS = "<eos>"


def main() -> None:
    """Parses the command line, trains and writes the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=65_536)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--megabytes", type=int, default=48, help="of text that the tokenizer and the model see")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trained, held = gather(args.megabytes * 1_000_000)
    with (args.out / "held.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text, "source": source}) + "\n" for text, source in held)
    print(f"{len(trained):,} files to train on, {len(held):,} pieces held back", flush=True)
    tokenizer = tokenizer_of(args, trained)
    eos = tokenizer.token_to_id(EOS)
    tokens = np.concatenate([[*item.ids, eos] for item in tokenizer.encode_batch(trained)]).astype(np.int64)
    print(f"V = {tokenizer.get_vocab_size():,}, {len(tokens):,} tokens", flush=True)
    model = train(args, tokenizer.get_vocab_size(), tokens)
    held_tokens = [item.ids for item in tokenizer.encode_batch([text for text, _ in held[:500]])]
    print(f"held loss over the full vocabulary: {held_loss(model, held_tokens):.3f} nats a token")
    model.save_pretrained(args.out)


def tokenizer_of(args: argparse.Namespace, texts: list[str]) -> Tokenizer:
    """A byte-level BPE of the texts, kept beside the model; the one that is there already, if any."""
    if (args.out / "tokenizer.json").exists():
        return Tokenizer.from_file(str(args.out / "tokenizer.json"))
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=args.vocab, special_tokens=[EOS], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=EOS).save_pretrained(args.out)
    return trained._tokenizer


def gather(most: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts to train on, `most` characters of them, and pieces held back with the name of their file."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"], paths["purelib"], "/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl"]
    found = {path for root in roots for path in Path(root).rglob("*") if path.suffix in SUFFIXES}
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    trained: list[str] = []
    held: list[tuple[str, str]] = []
    seen: set[bytes] = set()
    size = 0
    for path in ordered:
        is_held = hashlib.sha256(str(path).encode()).digest()[0] % HELD_SHARE == 0
        if is_held and len(held) < HELD_PIECES:
            held += [(piece, path.name) for piece in list(new_pieces(read(path), seen))[:HELD_OF_ONE]]
        elif not is_held and size < most:
            pieces = list(new_pieces(read(path), seen))
            trained += ["\n".join(pieces)] if pieces else []
            size += sum(map(len, pieces))
    return trained, held


def read(path: Path) -> str:
    """The first part of a file as text; nothing where it is not text or cannot be read."""
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="strict" if path.suffix != ".gz" else "replace")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""


def new_pieces(text: str, seen: set[bytes]) -> Iterator[str]:
    """Whole lines of a text, about 400 characters together, but for those that an earlier file had, too."""
    piece: list[str] = []
    for line in [*text.splitlines(), ""]:
        piece.append(line[:PIECE_CHARACTERS])
        if sum(map(len, piece)) >= PIECE_CHARACTERS:
            joined = "\n".join(piece).strip()
            piece = []
            digest = hashlib.blake2b(joined.encode(errors="replace"), digest_size=8).digest()
            if digest not in seen and "\x00" not in joined:
                seen.add(digest)
                yield joined


def train(args: argparse.Namespace, vocab_size: int, tokens: np.ndarray) -> LlamaForCausalLM:
    """A model trained for so many steps on random windows of the tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    windows = torch.from_numpy(tokens[: len(tokens) // (SEQUENCE + 1) * (SEQUENCE + 1)]).view(-1, SEQUENCE + 1)
    frequencies = torch.bincount(windows.flatten(), minlength=vocab_size).double() + 1
    draw = frequencies.pow(0.5) / frequencies.pow(0.5).sum()  # of a negative: rare tokens more often than in text
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    started, losses = time.perf_counter(), []
    order = torch.randperm(len(windows)).split(BATCH)
    for step in range(1, args.steps + 1):
        batch = windows[order[step % len(order)]]
        for group in optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * step / args.steps))
            group["lr"] = RATE * min(1.0, step / 100) * (0.02 + 0.98 * decay)
        hidden = model.model(batch[:, :-1]).last_hidden_state.flatten(0, 1)
        loss = sampled_loss(hidden, batch[:, 1:].flatten(), model.lm_head.weight, draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 0:
            passed = time.perf_counter() - started
            print(f"{passed:.0f} s, step {step}: {np.mean(losses[-100:]):.3f}", flush=True)
    print(f"{args.steps * BATCH * SEQUENCE:,} tokens in {args.steps} steps")
    return model.eval()


def sampled_loss(hidden: torch.Tensor, labels: torch.Tensor, head: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the batch's labels and tokens drawn beside them; in expectation close to the full one.

    The labels that occur stand for themselves. Each other token that was drawn stands for 1 / (chance of being drawn).
    """
    present, targets = labels.unique(return_inverse=True)
    drawn = torch.multinomial(draw, NEGATIVES, replacement=True).unique()
    drawn = drawn[~torch.isin(drawn, present)]
    chance = -torch.expm1(NEGATIVES * torch.log1p(-draw[drawn]))
    logits = hidden @ head[torch.cat([present, drawn])].T
    logits = torch.cat([logits[:, : len(present)], logits[:, len(present) :] - chance.log().float()], dim=1)
    return torch.nn.functional.cross_entropy(logits, targets)


@torch.inference_mode()
def held_loss(model: LlamaForCausalLM, pieces: list[list[int]]) -> float:
    """Mean loss over every token of some pieces."""
    total, num_tokens = 0.0, 0
    for ids in (torch.tensor(piece[:256]) for piece in pieces if len(piece) > 1):
        logits = model(ids[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        num_tokens += len(ids) - 1
    return total / num_tokens


if __name__ == "__main__":
    main()
