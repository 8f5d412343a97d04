"""The page of the evaluation and its plots, from what the parts have left in the work folder."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_methods import OURS, RULES

__all__ = ["write_page"]

_BASIC = ("raw", "cosine", "hidden states only", "rank-1 product", "loss", "BM25", "random")
_WHOLE = ("last block, dot product", "last block, cosine", "all parameters, dot product", "all parameters, cosine")
_OURS = f"{OURS} | 10 x mean | value"
_OURS_RELATIVE = f"{OURS} | 10 x mean | relative"
_OURS_SKETCH = f"{OURS} | 10 x mean | sketch tier"
_GEOMETRIES = (
    OURS,
    "EK-FAC, U_e x U_h",
    "K-FAC, U_e x U_h",
    "sketch",
    "sketch, all samples",
    "full",
    "full, unit norms",
)
_MEASURES = {"auc": "AUC", "recall": "recall"}
Cells = dict[str, dict[str, dict[str, np.ndarray]]]  # case -> method -> measure -> one number a query and seed


def write_page(work: Path, out: Path) -> None:
    """Writes evaluation.md and SVG plots of what there is."""
    cases = _read(work)
    parts = [_intro(cases)]
    parts += [_table(cases, task) for task in sorted({name.split(" · ")[0] for name in cases})]
    parts.append(_rules(cases))
    parts.append(_geometries(cases))
    for name, write in (("lds", _lds), ("selections", _selections)):
        if (work / f"{name}.json").exists():
            parts.append(write(json.loads((work / f"{name}.json").read_text())))
    (out / "evaluation.md").write_text("\n".join(parts).rstrip() + "\n")
    _plot(cases, out / "evaluation.svg")


def _read(work: Path) -> Cells:
    found: Cells = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: np.empty(0))))
    for path in sorted(work.glob("*-*.json")):
        stored = json.loads(path.read_text())
        if "methods" not in stored or "task" not in stored:
            continue
        name = f"{stored['task']} · {stored['data']} · {stored['positions']}"
        for method, measures in stored["methods"].items():
            for measure, values in measures.items():
                kept = found[name][method]
                kept[measure] = np.concatenate([kept[measure], np.asarray(values, dtype=float)])
    return found


def _intro(cases: Cells) -> str:
    return f"""# Evaluation

The protocol of For-Value (arXiv 2508.10180) on a 260K-parameter Llama (V = 512, d = 64): two public sets of 10 classes
with 90 training and 10 test samples each (sentence transformations, maths without reasons) and TruthfulQA. Exact
values, by the definition from whole gradients of the unembedding, except where a tier is named. {len(cases)} cases;
mean ± standard deviation over queries (and seeds).

    scripts/evaluate.py compare --model M --data DIR --work DIR
    scripts/evaluate.py retrain --model M --data DIR --work DIR
    scripts/evaluate.py page --work DIR

Retrieval: each test sample is a query, and its own class's training samples should come first. Detection: a share of
the training responses is swapped between classes, and the wrong ones should come last for their class's clean test
samples. Truthful: good answers of other questions should come before bad ones, for the mean of good answers, or good
minus bad. Preconditioned: damping 10, the default; relative: over the sample's own norm under the damped inverse.

![AUC by case and method](evaluation.svg)
"""


def _shown(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}"


def _table(cases: Cells, task: str) -> str:
    names = [name for name in cases if name.split(" · ")[0] == task]
    lines = [f"## {task[0].upper()}{task[1:]}", ""]
    for name in names:
        measures = list(next(iter(cases[name].values())))
        lines += [f"**{name.split(' · ', 1)[1]}**", ""]
        lines += [
            "| method | " + " | ".join(_MEASURES.get(m, m) for m in measures) + " |",
            "|---" * (len(measures) + 1) + "|",
        ]
        for method in (*_BASIC, *_WHOLE, _OURS, _OURS_RELATIVE, _OURS_SKETCH):
            if method in cases[name]:
                label = method.replace(f"{OURS} | 10 x mean | ", "preconditioned, ")
                cells = [_shown(cases[name][method][measure]) for measure in measures]
                lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _main_measure(measures: dict[str, np.ndarray]) -> np.ndarray:
    return measures["auc"] if "auc" in measures else measures["auc, good"]


def _rules(cases: Cells) -> str:
    """Every rule to choose the damping, against raw: AUC gained, by case."""
    lines = [
        "## How to choose damping",
        "",
        "AUC gained over raw by what is in use, mean over queries (m: times the mean moment; tr: of the trace).",
        "",
        "| case | " + " | ".join(_short(rule) for rule in RULES) + " |",
        "|---" * (len(RULES) + 1) + "|",
    ]
    gains = np.array([[_gain(methods, rule) for rule in RULES] for methods in cases.values()])
    lines += [f"| {name} | {_signed(row)} |" for name, row in zip(cases, gains, strict=True)]
    lines += [f"| **worst** | {_signed(gains.min(0))} |", f"| **mean** | {_signed(gains.mean(0))} |"]
    return "\n".join([*lines, ""])


def _gain(methods: dict[str, dict[str, np.ndarray]], rule: str) -> float:
    return float((_main_measure(methods[f"{OURS} | {rule} | value"]) - _main_measure(methods["raw"])).mean())


def _short(rule: str) -> str:
    return rule.replace(" x mean", " m").replace(" of the trace", " tr").replace(" of the energy left", " energy left")


def _signed(row: np.ndarray) -> str:
    return " | ".join(f"{value:+.3f}" for value in row)


def _geometries(cases: Cells) -> str:
    """Where the second moments are taken: AUC with damping 10."""
    lines = [
        "## What to precondition with",
        "",
        "AUC with damping 10 (of the mean second moment of the geometry) by geometry, value / relative.",
        "",
        "| case | " + " | ".join(_GEOMETRIES) + " |",
        "|---" * (len(_GEOMETRIES) + 1) + "|",
    ]
    for name, methods in cases.items():
        cells = []
        for geometry in _GEOMETRIES:
            pair = [_main_measure(methods[f"{geometry} | 10 x mean | {way}"]).mean() for way in ("value", "relative")]
            cells.append(f"{pair[0]:.3f} / {pair[1]:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _lds(stored: dict[str, Any]) -> str:
    lines = [
        "## Linear datamodeling score",
        "",
        f"{stored['num_subsets']} trainings on random halves of the 900 sentence transformations (responses counted,",
        "one epoch); Spearman correlation of the summed values with the loss of each of 100 test samples, mean and",
        "standard error over these.",
        "",
        "| method | score |",
        "|---|---|",
    ]
    for name, values in sorted(stored["methods"].items(), key=lambda item: -float(np.mean(item[1]))):
        lines.append(f"| {name} | {np.mean(values):.3f} ± {np.std(values) / np.sqrt(len(values)):.3f} |")
    return "\n".join([*lines, ""])


def _selections(stored: dict[str, Any]) -> str:
    shares = stored["shares"]
    lines = [
        "## Training on a selection",
        "",
        "Mean loss on the test samples of a class after one epoch on the share of the 900 selected for it; mean over",
        f"{len(stored['labels'])} classes ± standard deviation. Before training {_shown(np.array(stored['none']))},",
        f"on all {_shown(np.array(stored['all']))}.",
        "",
        "| method | " + " | ".join(f"{float(share):.0%}" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    lines += [
        f"| {method} | " + " | ".join(_shown(np.array(shares[share][method])) for share in shares) + " |"
        for method in next(iter(shares.values()))
    ]
    return "\n".join([*lines, ""])


def _plot(cases: Cells, path: Path) -> None:
    import matplotlib  # a development dependency: only the plot needs it

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "evaluation"
    import matplotlib.pyplot as plt

    methods = {"raw": "raw", "cosine": "cosine", _OURS: "preconditioned", _OURS_RELATIVE: "preconditioned, relative",
               "BM25": "BM25", "loss": "loss"}  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(cases) + 1.5))
    height = 0.8 / len(methods)
    for number, (method, label) in enumerate(methods.items()):
        means = [_main_measure(found[method]).mean() for found in cases.values()]
        axes.barh(np.arange(len(cases)) + number * height, means, height, label=label)
    axes.set_yticks(np.arange(len(cases)) + 0.4, list(cases), fontsize=7)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(xlabel="AUC", xlim=(0.3, 1.0))
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
