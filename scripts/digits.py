"""What the digits show: a tiny vision-language model is trained on scikit-learn's 8 x 8 digits ("What digit is this?"
-> "It is a seven."), a corpus with wrong answers goes through the real path, and values find them.

    python scripts/digits.py            # writes scripts/results/digits.md and digits.png
    python scripts/digits.py --small    # in a minute, into --out only

As in the paper's vision experiments (arXiv 2508.10180, section 5): detecting mislabelled samples with 10, 30 and 50 %
of the answers swapped, and retrieving the samples of the class that is asked about; by raw, cosine and preconditioned
values. The model is SmolVLM's architecture at a thousandth of its size; it is trained on a part of the digits that the
corpus does not hold.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.stats import rankdata
from sklearn.datasets import load_digits

from curator import Curator
from curator.models import CausalLM, Encoder, load_tokenizer, load_vision
from curator.types import EncodedSample, Sample
from curator.types import Image as ImageOf
from tests.models.tiny_vision import save_vision

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "what digit is this?"
SHARES = (0.1, 0.3, 0.5)
METHODS = ("raw", "cosine", "preconditioned")
NAMED = {"prompt_field": "prompt", "response_field": "response", "image_field": "image"}
RESULTS = Path(__file__).parent / "results"


def answer(digit: int) -> str:
    """What the model should say."""
    return f" it is a {WORDS[digit]}."


def png(pixels: np.ndarray) -> bytes:
    """An 8 x 8 digit as a PNG file of twice its size."""
    file = io.BytesIO()
    grey = (255 - np.clip(pixels * 16, 0, 255)).astype(np.uint8)
    Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def train(
    directory: Path, images: list[bytes], digits: np.ndarray, *, seconds: float, steps: int | None = None, seed: int = 0
) -> Path:
    """A tiny model that has seen these digits for so long, or for so many steps."""
    torch.manual_seed(seed)
    lm = CausalLM.load(save_vision(directory, "smolvlm", seed, initializer_range=0.05), device="cpu")
    tokenizer = load_tokenizer(directory)
    encoder = Encoder(tokenizer, max_length=128, vocab_size=lm.vocab_size, vision=load_vision(directory, tokenizer))
    samples = [
        Sample(prompt=QUESTION, response=answer(digit), images=(ImageOf.of(image),))
        for image, digit in zip(images, digits, strict=True)
    ]
    encoded = [item for item in encoder.encode(samples) if isinstance(item, EncodedSample)]
    assert len(encoded) == len(samples)
    # [N, images of a sample, ...]: a digit is seen whole and in parts
    pixels = torch.stack([lm.vision.features(item.images)["pixel_values"].flatten(0, -4) for item in encoded])
    ids, counted = (np.zeros((len(encoded), max(item.num_tokens for item in encoded)), kind) for kind in (int, bool))
    for row, item in enumerate(encoded):
        ids[row, : item.num_tokens], counted[row, : item.num_tokens] = item.input_ids, item.counted
    labels = torch.from_numpy(np.where(counted, ids, -100))
    model = lm._model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    generator, started, step = torch.Generator().manual_seed(seed), time.monotonic(), 0
    while True:
        passed = time.monotonic() - started
        done = passed / seconds if steps is None else step / steps
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - done)
        some = torch.randint(len(ids), (48,), generator=generator)
        logits = model(torch.from_numpy(ids)[some], pixel_values=pixels[some]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[some, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"{passed:5.0f} s, step {step}: loss {loss.item():.3f}", file=sys.stderr)
    model.eval().save_pretrained(directory)
    return directory


def accuracy(directory: Path, images: list[bytes], digits: np.ndarray) -> float:
    """The share of digits whose right answer the model finds likelier than the nine others."""
    lm = CausalLM.load(directory, device="cpu")
    tokenizer = load_tokenizer(directory)
    encoder = Encoder(tokenizer, max_length=128, vocab_size=lm.vocab_size, vision=load_vision(directory, tokenizer))
    right = 0
    for image, digit in zip(images, digits, strict=True):
        asked = [Sample(prompt=QUESTION, response=answer(other), images=(ImageOf.of(image),)) for other in range(10)]
        batch = lm.hidden(encoder.encode(asked))
        _, losses = lm.head.errors(batch.hidden, batch.labels)
        right += int(np.argmin([part.sum().item() for part in losses.split(batch.counts)]) == digit)
    return right / len(images)


def write_corpus(path: Path, images: list[bytes], digits: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Rows with images in Parquet, as Hugging Face datasets are; a share of the answers is another digit's."""
    random = np.random.default_rng(seed)
    is_wrong = np.zeros(len(digits), bool)
    is_wrong[random.permutation(len(digits))[: round(share * len(digits))]] = True
    said = np.where(is_wrong, (digits + random.integers(1, 10, len(digits))) % 10, digits)
    rows = [
        {"id": f"d{number}", "image": {"bytes": image, "path": None}, "prompt": QUESTION, "response": answer(int(word)),
         "said": WORDS[word], "digit": WORDS[digit], "is_wrong": bool(wrong)}
        for number, (image, word, digit, wrong) in enumerate(zip(images, said, digits, is_wrong, strict=True))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return is_wrong


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive one is above a negative one."""
    ranks = rankdata(np.concatenate([positive, negative]))
    return float(
        (ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / len(positive) / len(negative)
    )


def detection(curator: Curator, validation: Path, rows: list[dict[str, Any]], method: str) -> tuple[float, float]:
    """AUC of finding wrong answers among those that say a class, by their value for clean rows of it; over classes."""
    wrong = {row["id"]: row["is_wrong"] for row in rows}
    said = {row["id"]: row["said"] for row in rows}
    found = []
    by_class: dict[str, dict[str, float]] = {}
    for row in curator.values(data=validation, by="said", method=method, **NAMED):
        by_class.setdefault(row["query"], {})[row["key"]] = row["value"]
    for word, values in by_class.items():
        own = {key: value for key, value in values.items() if said[key] == word}
        right, bad = (np.array([v for k, v in own.items() if wrong[k] == is_bad]) for is_bad in (False, True))
        if len(right) and len(bad):
            found.append(auc(right, bad))
    return float(np.mean(found)), float(np.std(found))


def retrieval(curator: Curator, validation: Path, rows: list[dict[str, Any]], method: str) -> tuple[float, ...]:
    """AUC, and recall at the class's size, of each validation row's class; mean and deviation over rows."""
    digit = {row["id"]: row["digit"] for row in rows}
    asked = {row["id"]: row["digit"] for row in pq.read_table(validation).to_pylist()}
    values: dict[str, dict[str, float]] = {}
    for row in curator.values(data=validation, each=True, id_field="id", method=method, **NAMED):
        values.setdefault(row["query"], {})[row["key"]] = row["value"]
    aucs, recalls = [], []
    for key, of in values.items():
        is_own = np.array([digit[sample] == asked[key] for sample in of])
        numbers = np.array(list(of.values()))
        aucs.append(auc(numbers[is_own], numbers[~is_own]))
        recalls.append(float(is_own[np.argsort(-numbers)[: is_own.sum()]].mean()))
    return float(np.mean(aucs)), float(np.std(aucs)), float(np.mean(recalls)), float(np.std(recalls))


def picture(curator: Curator, out: Path, count: int = 24) -> int:
    """The worst suspects of the audit as a picture: what each one's answer says; returns how many are wrong."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    items = curator.audit_mislabeled(limit=count).items
    figure, axes = pyplot.subplots(3, count // 3, figsize=(count // 3 * 0.9, 3.6))
    for axis, item in zip(axes.flat, items, strict=False):
        with curator._store.session() as session:
            from curator.metadata.samples import rows_by_id

            row = rows_by_id(session, [item.id])[item.id][0]
        axis.imshow(Image.open(curator._store.images.path(row.images[0])), cmap="grey")
        is_wrong = row.meta["is_wrong"]
        axis.set_title(row.label, color="tab:red" if is_wrong else "tab:green", fontsize=9)
        axis.axis("off")
    figure.suptitle("The worst suspects, with what their answers say; red: really wrong", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    return sum(bool(item.meta["is_wrong"]) for item in items)


def run(
    folder: Path, *, num_corpus: int, num_asked: int, seconds: float, out: Path, steps: int | None = None
) -> dict[str, Any]:
    """Trains, ingests three corpora, asks; the figures."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, digits = [png(data.images[at]) for at in order], data.target[order]
    clean, corpus = slice(0, num_asked), slice(num_asked, num_asked + num_corpus)
    learnt = slice(num_asked + num_corpus, None)
    model = train(folder / "model", images[learnt], digits[learnt], seconds=seconds, steps=steps)
    figures: dict[str, Any] = {
        "accuracy": accuracy(model, images[corpus][:300], digits[corpus][:300]),
        "trained_on": len(digits[learnt]),
        "corpus": num_corpus,
        "asked": num_asked,
        "detection": {},
    }
    print(f"accuracy {figures['accuracy']:.3f}", file=sys.stderr)
    validation = folder / "validation.parquet"
    write_corpus(validation, images[clean], digits[clean], share=0.0, seed=0)
    for share in SHARES:
        path = folder / f"corpus-{share}.parquet"
        write_corpus(path, images[corpus], digits[corpus], share=share, seed=1)
        rows = pq.read_table(path).to_pylist()
        with Curator.open(folder / f"store-{share}", device="cpu") as curator:
            report = curator.ingest(
                path, dataset="digits", model=str(model), id_field="id", label_field="said", **NAMED
            )
            assert report.added == num_corpus, report.reasons
            figures["detection"][share] = {method: detection(curator, validation, rows, method) for method in METHODS}
            figures["detection"][share]["audit"] = audited(curator, rows)
            if share == SHARES[0]:
                figures["retrieval"] = {method: retrieval(curator, validation, rows, method) for method in METHODS}
            if share == SHARES[1]:
                figures["suspects_wrong"] = picture(curator, out.with_suffix(".png"))
        print(json.dumps(figures["detection"][share]), file=sys.stderr)
    return figures


def audited(curator: Curator, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """AUC of the audit's own order, without clean rows; and the share of wrong ones among its first tenth."""
    items = curator.audit_mislabeled(limit=len(rows)).items
    wrong = np.array([item.meta["is_wrong"] for item in items], bool)
    order = np.arange(len(items), 0, -1)
    return auc(order[wrong], order[~wrong]), float(wrong[: len(wrong) // 10].mean())


def written(figures: dict[str, Any], seconds: float) -> str:
    """The page."""
    lines = [
        "# Digits: values of a vision-language model",
        "",
        "`python scripts/digits.py`, 2 shared cores, no GPU. SmolVLM's architecture with 43,000 parameters, trained "
        f"for {seconds:.0f} s on {figures['trained_on']} of scikit-learn's 8 x 8 digits; of "
        f"{min(300, figures['corpus'])} others it names {figures['accuracy']:.0%}. A corpus of "
        f"{figures['corpus']} digits with their answers, and {figures['asked']} clean ones to ask with, none "
        "of which the model has seen. Images in Parquet, ingested, "
        "queried at the sketch tier; damping as by default.",
        "",
        "**Finding wrong answers** (AUC among the samples that say a class, by their value for the clean rows of that "
        "class; mean ± standard deviation over the ten classes). Audit: `curator audit mislabeled` without clean rows, "
        "AUC over all, and the share of wrong answers among its first tenth.",
        "",
        "| answers swapped | raw | cosine | preconditioned | audit | first tenth |",
        "|---|---|---|---|---|---|",
    ]
    for share, of in figures["detection"].items():
        cells = " | ".join("{:.3f} ± {:.3f}".format(*of[method]) for method in METHODS)
        lines.append(f"| {share:.0%} | {cells} | {of['audit'][0]:.3f} | {of['audit'][1]:.2f} |")
    lines += [
        "",
        f"**Same-class retrieval** ({figures['asked']} queries of one row each, corpus with {SHARES[0]:.0%} swapped; "
        "the class is that of the image). Recall at the size of the class.",
        "",
        "| method | AUC | recall |",
        "|---|---|---|",
    ]
    lines += [
        f"| {method} | {of[0]:.3f} ± {of[1]:.3f} | {of[2]:.3f} ± {of[3]:.3f} |"
        for method, of in figures["retrieval"].items()
    ]
    lines += [
        "",
        f"The 24 worst suspects of the audit with {SHARES[1]:.0%} swapped, {figures['suspects_wrong']} of them wrong:",
        "",
        "![suspects](digits.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, help="of training; 90, or 15 if small")
    parser.add_argument("--out", type=Path, default=RESULTS / "digits.md")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    seconds = given.seconds or (15.0 if given.small else 90.0)
    size = {"num_corpus": 150, "num_asked": 20} if given.small else {"num_corpus": 700, "num_asked": 100}
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), seconds=seconds, out=given.out, **size)
    given.out.write_text(written(figures, seconds))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
