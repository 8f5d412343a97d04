#!/usr/bin/env python
"""Write the texts of the demo that ships with the package: a corpus with known mistakes, and validation sets.

Every text is generated here, from the templates and word lists below, so nothing is downloaded and nothing has
an owner. Six tasks with short answers are mixed; in the corpus about 15 % of the answers are wrong in a plausible
way and say so (`is_wrong`), which is what a valuation should find.

scripts/train_demo_model.py trains the demo's model on correct draws of the same tasks (`training_rows`). Same seed,
same bytes of all JSON lines.

    python scripts/make_demo_corpus.py
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "curator" / "demo"
SEED = 20
NUM_PER_TASK = 100  # corpus rows of each task
NUM_WRONG = 15  # of these, rows with a wrong answer
NUM_VALIDATION = 12
NUM_TEST = 40  # further held-out rows of each task, for the accuracy that training prints
# Tasks whose answers recur from row to row. Every capital or opposite is an answer of its own: other rows of the task
# say next to nothing about it, and their values are not worth showing.
VALIDATION_TASKS = ("addition", "group", "sentiment", "weekday")


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


def to_jsonl(rows: Iterable[dict]) -> str:
    """Return rows as JSON lines, the exact text of the files this script writes."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def write_texts(folder: Path, seed: int) -> None:
    """Write the corpus and one validation file for each of VALIDATION_TASKS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(to_jsonl(corpus_rows(seed)), encoding="utf-8")
    for task in TASKS:
        if task.name in VALIDATION_TASKS:
            path = folder / f"validation_{task.name}.jsonl"
            path.write_text(to_jsonl(validation_rows(task, seed)), encoding="utf-8")


def main() -> None:
    """Parse the command line and write the texts."""
    parser = argparse.ArgumentParser(description="Write the texts of the bundled demo: corpus and validation files.")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write (default: curator/demo)")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    write_texts(args.out, args.seed)


if __name__ == "__main__":
    main()
