"""The data of the evaluation: public sets as items with classes, wrong answers put in, truthful and untruthful ones.

Items are prompt, response and class. Files are JSON lines (.gz) in one folder:

    datainf_sentence_transformation_{train,test}   sentences: 10 classes x 90 / 10
    datainf_math_without_reason_{train,test}       maths: 10 classes x 90 / 10, the answer is a number
    truthfulqa                                     817 questions with correct and incorrect answers
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SETS", "Item", "Truthful", "corrupt", "read_classes", "read_truthful"]

SETS = {"sentences": "datainf_sentence_transformation", "maths": "datainf_math_without_reason"}


@dataclass(frozen=True)
class Item:
    """One sample and the class it is said to be of."""

    prompt: str
    response: str
    label: str

    @property
    def text(self) -> str:
        """The whole."""
        return self.prompt + self.response


@dataclass(frozen=True)
class Truthful:
    """A question with one good and one bad answer."""

    good: Item
    bad: Item


def read_classes(folder: Path, name: str) -> tuple[list[Item], list[Item]]:
    """Training and test items of one of SETS; the response is what the set's own text has after the prompt."""
    parts = []
    for part in ("train", "test"):
        rows = _rows(folder / f"{SETS[name]}_{part}.jsonl.gz")
        texts = [row["text"].removesuffix("</s>") for row in rows]
        parts.append(
            [
                Item(row["prompt"], text[len(row["prompt"]) :], row["variation"])
                for row, text in zip(rows, texts, strict=True)
            ]
        )
    return parts[0], parts[1]


def read_truthful(folder: Path) -> list[Truthful]:
    """Every question with its best answer, and the first of its incorrect ones."""
    found = []
    for row in _rows(folder / "truthfulqa.jsonl.gz"):
        question = f"Question: {row['Question']}\nAnswer:"
        bad = row["Incorrect Answers"].split(";")[0].strip()
        good = row["Best Answer"].strip()
        if good and bad:
            found.append(Truthful(Item(question, f" {good}", "good"), Item(question, f" {bad}", "bad")))
    return found


def corrupt(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], np.ndarray]:
    """The items with `share` of the responses swapped among those chosen, each for one of another class, and which.

    A swapped response that is the same text after all (numbers can be) is drawn again with the others.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(items))[: round(share * len(items))]
    labels = np.array([items[i].label for i in chosen])
    givers = generator.permutation(chosen)
    for _ in range(1_000):
        wrong = np.flatnonzero(
            [
                items[giver].label == label or items[giver].response == items[taker].response
                for giver, label, taker in zip(givers, labels, chosen, strict=True)
            ]
        )
        if not len(wrong):
            break
        for one in wrong:
            other = generator.integers(len(givers))
            givers[one], givers[other] = givers[other], givers[one]
    else:
        raise ValueError(f"{len(wrong)} of {len(chosen)} responses cannot be swapped between classes")
    changed = list(items)
    for taker, giver in zip(chosen, givers, strict=True):
        changed[taker] = replace(items[taker], response=items[giver].response)
    is_wrong = np.zeros(len(items), dtype=bool)
    is_wrong[chosen] = True
    return changed, is_wrong


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
