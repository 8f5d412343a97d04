#!/usr/bin/env python
"""Write the demo that ships with the package: a small language model, a corpus with known mistakes, validation sets.

Every text is generated here, from the templates and word lists below, so nothing is downloaded and nothing has
an owner. Six tasks with short answers are mixed; in the corpus about 15 % of the answers are wrong in a plausible
way and say so (`is_wrong`), which is what a valuation should find.

The model is trained on correct text only: random draws of the same six tasks, with the loss on every token of
<s> prompt response </s>. The draws overlap with the corpus (prompts of the corpus occur there with their right
answers); the prompts of the validation files and of the held-out accuracy test do not occur. Facts do recur in other
wordings, so that for capitals, groups and opposites held out means a new wording of a known fact.

Training smooths the labels: a model sure of every answer makes no errors on right ones, and values are products of
errors. Smoothed by 0.1 it still answers right, and keeps an error of about 0.1 on each answer.

Same seed, same bytes of all JSON lines. The weights repeat on one machine (one thread, fixed seed), while another CPU
may round differently.

    python scripts/train_demo_model.py                 # about three minutes on one core
    python scripts/train_demo_model.py --texts-only    # corpus and validation files, no training
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

DEMO = Path(__file__).resolve().parent.parent / "curator" / "demo"
SEED = 20
NUM_PER_TASK = 100  # corpus rows of each task
NUM_WRONG = 15  # of these, rows with a wrong answer
NUM_VALIDATION = 12
NUM_TEST = 40  # further held-out rows of each task, for the accuracy printed here
# Tasks whose answers recur from row to row. Every capital or opposite is an answer of its own: other rows of the task
# say next to nothing about it, and their values are not worth showing.
VALIDATION_TASKS = ("addition", "group", "sentiment", "weekday")
IGNORED = -100  # label of padding


def listed(text: str) -> list[str]:
    """Split a comma-separated list, which reads better here than a hundred quoted words."""
    return text.split(", ")


def paired(text: str) -> list[tuple[str, str]]:
    """Split a comma-separated list of left=right."""
    return [(left, right) for left, right in (pair.split("=") for pair in listed(text))]


PEOPLE = listed("Anna, Ben, Clara, David, Emma, Finn, Grace, Henry, Ivy, Jack, Kate, Leo")
THINGS = listed("apples, books, coins, pens, stamps, shells, cards, stones, marbles, eggs")
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
CAPITALS = paired(
    "Argentina=Buenos Aires, Australia=Canberra, Austria=Vienna, Belgium=Brussels, Brazil=Brasilia, Bulgaria=Sofia, "
    "Canada=Ottawa, Chile=Santiago, China=Beijing, Croatia=Zagreb, Cuba=Havana, Denmark=Copenhagen, Egypt=Cairo, "
    "Estonia=Tallinn, Finland=Helsinki, France=Paris, Germany=Berlin, Greece=Athens, Hungary=Budapest, "
    "Iceland=Reykjavik, India=New Delhi, Indonesia=Jakarta, Iran=Tehran, Iraq=Baghdad, Ireland=Dublin, Italy=Rome, "
    "Japan=Tokyo, Kenya=Nairobi, Latvia=Riga, Lebanon=Beirut, Mexico=Mexico City, Mongolia=Ulaanbaatar, "
    "Nepal=Kathmandu, Norway=Oslo, Peru=Lima, Poland=Warsaw, Portugal=Lisbon, Romania=Bucharest, Russia=Moscow, "
    "Serbia=Belgrade, Spain=Madrid, Sweden=Stockholm, Thailand=Bangkok, Turkey=Ankara, Ukraine=Kyiv, "
    "Uruguay=Montevideo, Vietnam=Hanoi"
)
OPPOSITES = paired(
    "hot=cold, big=small, fast=slow, high=low, old=young, early=late, hard=soft, wet=dry, rich=poor, strong=weak, "
    "light=dark, full=empty, open=closed, clean=dirty, happy=sad, long=short, thick=thin, wide=narrow, deep=shallow, "
    "loud=quiet, sweet=bitter, rough=smooth, sharp=blunt, safe=dangerous, easy=difficult, cheap=expensive, true=false, "
    "right=wrong, first=last, near=far, inside=outside, above=below, before=after, always=never, begin=end, buy=sell, "
    "give=take, love=hate, push=pull, win=lose, come=go, laugh=cry, day=night, summer=winter, friend=enemy, "
    "north=south, east=west, top=bottom, question=answer, war=peace, success=failure"
)
GROUPS = {
    "animal": listed("horse, cow, dog, cat, wolf, rabbit, tiger, sheep, mouse"),
    "fruit": listed("apple, pear, plum, cherry, banana, lemon, grape, peach, melon"),
    "colour": listed("red, blue, green, yellow, purple, brown, black, white, pink"),
    "tool": listed("hammer, saw, drill, spade, rake, axe, chisel, wrench, pliers"),
    "vehicle": listed("car, bus, train, bicycle, lorry, tram, van, taxi, scooter"),
    "instrument": listed("piano, violin, flute, guitar, trumpet, cello, harp, clarinet, drum"),
    "metal": listed("iron, gold, silver, copper, tin, lead, zinc, nickel, steel"),
    "sport": listed("football, tennis, rugby, hockey, golf, boxing, rowing, judo, cricket"),
}
SUBJECTS = listed(
    "The soup, The room, The film, The staff, The hotel, The coffee, The concert, The book, The service, The pizza"
)
PRAISE = listed("great, lovely, excellent, charming, delightful, superb, wonderful, perfect")
BLAME = listed("awful, dreadful, terrible, boring, disappointing, horrible, poor, dull")
PRAISE_ENDS = listed("I will come back, I loved every minute, I told all my friends, it was worth the money")
BLAME_ENDS = listed("I will not come back, I want my money back, we left early, it was a waste of time")


@dataclass(frozen=True)
class Draw:
    """One prompt with its right answer and a plausible wrong one."""

    prompt: str
    right: str
    wrong: str


def draw_addition(rng: random.Random) -> Draw:
    """A word problem with a sum from 4 to 24; the wrong one, off by a slip or a carry, stays in that range."""
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    name, things = rng.choice(PEOPLE), rng.choice(THINGS)
    prompt = rng.choice(
        [
            f"{name} has {a} {things} and buys {b} more. How many {things} now?",
            f"{name} finds {a} {things} and then {b} more. How many in all?",
            f"There are {a} {things} in a box. {name} adds {b}. How many {things}?",
            f"What is {a} plus {b}?",
        ]
    )
    slips = [a + b + slip for slip in (-10, -2, -1, 1, 2, 10) if 4 <= a + b + slip <= 24]
    return Draw(prompt, str(a + b), str(rng.choice(slips)))


def draw_capital(rng: random.Random) -> Draw:
    """A country's capital; the wrong answer is that of another country."""
    country, right = rng.choice(CAPITALS)
    prompt = rng.choice(
        [
            f"What is the capital of {country}?",
            f"Name the capital of {country}.",
            f"Which city is the capital of {country}?",
            f"{country} has which capital?",
            f"The government of {country} sits in which city?",
            f"Tell me the capital city of {country}.",
        ]
    )
    return Draw(prompt, right, rng.choice([city for _, city in CAPITALS if city != right]))


def draw_opposite(rng: random.Random) -> Draw:
    """A word's opposite; the wrong answer comes from another pair."""
    pair = rng.choice(OPPOSITES)
    word, right = rng.sample(pair, 2)
    prompt = rng.choice(
        [
            f"What is the opposite of {word}?",
            f"Give the opposite of the word {word}.",
            f"Which word means the opposite of {word}?",
            f"Not {word}, but the opposite:",
        ]
    )
    return Draw(prompt, right, rng.choice([other for two in OPPOSITES for other in two if other not in pair]))


def draw_group(rng: random.Random) -> Draw:
    """The group a word belongs to; the wrong answer is another group."""
    right = rng.choice(list(GROUPS))
    word = rng.choice(GROUPS[right])
    prompt = rng.choice(
        [
            f"Which group does the word {word} belong to?",
            f"What kind of thing is this: {word}?",
            f"Sort this word into its group: {word}.",
            f"The word {word} names what kind of thing?",
            f"In one word, what is meant by {word}?",
        ]
    )
    return Draw(prompt, right, rng.choice([group for group in GROUPS if group != right]))


def draw_sentiment(rng: random.Random) -> Draw:
    """The sentiment of a review of one or two clauses, some of them negated; the wrong answer is the other one."""
    is_praise = rng.random() < 0.5
    is_negated = rng.random() < 0.25
    verb = "was not" if is_negated else rng.choice(["was", "was really"])
    adjective = rng.choice(PRAISE if is_praise != is_negated else BLAME)
    review = f"{rng.choice(SUBJECTS)} {verb} {adjective}"
    if rng.random() < 0.5:
        review += f" and {rng.choice(PRAISE_ENDS if is_praise else BLAME_ENDS)}"
    prompt = rng.choice(
        [f"Review: {review}. Sentiment:", f"{review}. Is this review positive or negative?", f"Rate this: {review}."]
    )
    return Draw(prompt, *(("positive", "negative") if is_praise else ("negative", "positive")))


def draw_weekday(rng: random.Random) -> Draw:
    """The day of the week some days ahead or back; the wrong answer is another day."""
    start, days = rng.randrange(7), rng.randint(1, 2)
    unit = "day" if days == 1 else "days"
    template, sign = rng.choice(
        [
            ("Today is {day}. {name} leaves in {n} {unit}. On which day?", 1),
            ("{name} arrives on {day} and leaves {n} {unit} later. On which day?", 1),
            ("{name} rests {n} {unit} after {day}. On which day?", 1),
            ("Today is {day}. {name} came {n} {unit} ago. On which day?", -1),
            ("{name} rests {n} {unit} before {day}. On which day?", -1),
        ]
    )
    right = DAYS[(start + sign * days) % 7]
    prompt = template.format(day=DAYS[start], n=days, unit=unit, name=rng.choice(PEOPLE))
    return Draw(prompt, right, rng.choice([day for day in DAYS if day != right]))


@dataclass(frozen=True)
class Task:
    """A kind of instruction: its name, the prefix of its ids, and how one example is drawn."""

    name: str
    prefix: str
    draw: Callable[[random.Random], Draw]


TASKS = (
    Task("addition", "add", draw_addition),
    Task("capital", "cap", draw_capital),
    Task("group", "grp", draw_group),
    Task("opposite", "opp", draw_opposite),
    Task("sentiment", "sen", draw_sentiment),
    Task("weekday", "day", draw_weekday),
)


def distinct_draws(task: Task, seed: int) -> list[Draw]:
    """Return the held-out draws of a task (validation, then test) followed by its corpus draws, no prompt twice."""
    rng = random.Random(f"{seed}/{task.name}")
    draws: dict[str, Draw] = {}
    while len(draws) < NUM_VALIDATION + NUM_TEST + NUM_PER_TASK:
        draw = task.draw(rng)
        draws.setdefault(draw.prompt, draw)
    return list(draws.values())


def row_of(task: Task, draw: Draw, row_id: str, is_wrong: bool = False) -> dict:
    """One line of a JSON-lines file."""
    answer = draw.wrong if is_wrong else draw.right
    return {"id": row_id, "prompt": draw.prompt, "response": f" {answer}", "task": task.name, "is_wrong": is_wrong}


def corpus_rows(seed: int = SEED) -> list[dict]:
    """Return the corpus, shuffled: NUM_PER_TASK rows of each task, NUM_WRONG of them with a wrong answer."""
    rng = random.Random(f"{seed}/corpus")
    rows = []
    for task in TASKS:
        draws = distinct_draws(task, seed)[-NUM_PER_TASK:]
        wrong = set(rng.sample(range(NUM_PER_TASK), NUM_WRONG))
        rows += [row_of(task, draw, f"{task.prefix}-{i:04d}", i in wrong) for i, draw in enumerate(draws)]
    rng.shuffle(rows)
    return rows


def validation_rows(task: Task, seed: int = SEED) -> list[dict]:
    """Return correct rows of one task that are neither in the corpus nor in the training text."""
    draws = distinct_draws(task, seed)[:NUM_VALIDATION]
    return [row_of(task, draw, f"{task.prefix}-val-{i:02d}") for i, draw in enumerate(draws)]


def held_out_rows(task: Task, seed: int = SEED) -> list[dict]:
    """Return every held-out row of one task: its validation rows and the further ones that test accuracy."""
    draws = distinct_draws(task, seed)[:-NUM_PER_TASK]
    return [row_of(task, draw, f"{task.prefix}-held-{i:02d}") for i, draw in enumerate(draws)]


def training_rows(seed: int = SEED) -> Iterator[dict]:
    """Yield correct rows without end, tasks in turn, never a held-out prompt."""
    rng = random.Random(f"{seed}/training")
    held_out = {row["prompt"] for task in TASKS for row in held_out_rows(task, seed)}
    while True:
        for task in TASKS:
            draw = task.draw(rng)
            if draw.prompt not in held_out:
                yield row_of(task, draw, "")


def tokenizer_texts(seed: int = SEED) -> list[str]:
    """Return the text for the tokenizer: training rows, and every answer often enough to become a single token.

    An answer in several pieces would be valued mostly by how its pieces continue, not by what it says.
    """
    rows = list(islice(training_rows(seed), 12_000))
    return [row["prompt"] + row["response"] for row in rows] + sorted({row["response"] for row in rows}) * 100


def to_jsonl(rows: Iterable[dict]) -> str:
    """Return rows as JSON lines, the exact text of the files this script writes."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the texts."""

    seed: int
    vocab_size: int
    num_steps: int
    batch_size: int
    lr: float
    smoothing: float


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


def write_texts(folder: Path, seed: int) -> None:
    """Write the corpus and one validation file for each of VALIDATION_TASKS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(to_jsonl(corpus_rows(seed)), encoding="utf-8")
    for task in TASKS:
        if task.name in VALIDATION_TASKS:
            path = folder / f"validation_{task.name}.jsonl"
            path.write_text(to_jsonl(validation_rows(task, seed)), encoding="utf-8")


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
    parser = argparse.ArgumentParser(description="Write the bundled demo: model, corpus and validation files.")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write (default: curator/demo)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--vocab-size", type=int, default=1152)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    parser.add_argument("--texts-only", action="store_true", help="write corpus and validation files, train nothing")
    return parser.parse_args()


def main() -> None:
    """Write the texts, then the model."""
    args = parse_args()
    logging.disable_progress_bar()
    write_texts(args.out, args.seed)
    if not args.texts_only:
        recipe = Recipe(args.seed, args.vocab_size, args.steps, args.batch_size, args.lr, args.smoothing)
        write_model(args.out / "model", recipe)


if __name__ == "__main__":
    main()
