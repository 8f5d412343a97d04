#!/usr/bin/env python
"""Evaluates values: retrieval, mislabel detection, good against bad answers, retrainings; and ways to precondition.

    scripts/evaluate.py compare  --model M --data DIR --work DIR     every method on every case (evaluate_cases.py)
    scripts/evaluate.py retrain  --model M --data DIR --work DIR     linear datamodeling score, training on selections
    scripts/evaluate.py page     --work DIR --out scripts/results    the page and its plots, from what is in --work

For a small model: G is kept whole, and the definition computed. Results are files in --work, one a case or retraining:
a run that was stopped goes on. Needs the extra `dev`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate_cases import Case, cases
from evaluate_features import SmallModel, WholeGradients
from evaluate_methods import OURS, RULES, basic_scores, geometries
from evaluate_page import write_page
from evaluate_retrain import Recipe, Retraining
from evaluate_subsets import datamodeling, selections

_TASKS = ("retrieval", "detection", "truthful")


def main() -> None:
    """Parses the command line and runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "retrain", "page"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="the folder of the public sets (evaluate_data.py)")
    parser.add_argument("--work", type=Path, required=True, help="where results are kept, and taken from")
    parser.add_argument("--tasks", nargs="+", default=list(_TASKS), choices=_TASKS)
    parser.add_argument("--positions", nargs="+", default=["response", "all"], choices=["response", "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subsets", type=int, default=64, help="random halves to train on")
    parser.add_argument("--targets", type=int, default=5, help="classes to select for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"compare": compare, "retrain": retrain, "page": page}[args.what](args)


def compare(args: argparse.Namespace) -> None:
    """Judges all methods on all cases."""
    args.work.mkdir(parents=True, exist_ok=True)
    for positions in args.positions:
        model = SmallModel(args.model, positions)
        for case in cases(model, args.data, args.tasks, args.seeds):
            name = f"{case.task}-{case.data}-{case.positions}-{case.seed}".replace(" ", "-").replace("%", "")
            path = args.work / f"{name}.json"
            if path.exists():
                continue
            found = {
                "task": case.task,
                "data": case.data,
                "positions": case.positions,
                "seed": case.seed,
                "methods": {
                    method: {measure: values.tolist() for measure, values in judged.items()}
                    for method, judged in _all_methods(case, model).items()
                },
            }
            path.write_text(json.dumps(found))
            print(name, flush=True)


def _all_methods(case: Case, model: SmallModel) -> dict[str, dict[str, np.ndarray]]:
    scores = {name: part @ case.groups for name, part in basic_scores(case.train, case.queries, case.seed).items()}
    if case.task == "retrieval" or (case.task == "detection 30%" and case.seed == 0):
        found = WholeGradients(model, case.asked).products(case.items)
        for part, name in (("whole", "all parameters"), ("last_block", "last block")):
            scores[f"{name}, dot product"] = found[part] @ case.groups
            scores[f"{name}, cosine"] = found[part] / found[f"{part}_norm"][:, None] @ case.groups
    judged = {name: case.judge(part) for name, part in scores.items()}
    asked = torch.from_numpy(case.groups.T).float() @ case.queries.gradients
    for name, geometry in geometries(case.train, asked, case.projection).items():
        for rule, choose in RULES.items():
            delta = choose(geometry)
            judged[f"{name} | {rule} | value"] = case.judge(geometry.values(delta))
            judged[f"{name} | {rule} | relative"] = case.judge(geometry.cosines(delta))
            if name == OURS:
                judged[f"{name} | {rule} | sketch tier"] = case.judge(geometry.inside(delta))
            share = np.array([delta / geometry.moments.sum()])
            judged[f"{name} | {rule} | value"]["delta over trace"] = share
    return judged


def retrain(args: argparse.Namespace) -> None:
    """Trains on random halves, and on selections."""
    cache = args.work / "retrainings"
    model = SmallModel(args.model, "response")

    def retraining(train: Any, held_out: Any) -> Retraining:
        return Retraining(args.model, model.encode(train), model.encode(held_out), Recipe(), cache)

    (args.work / "lds.json").write_text(json.dumps(datamodeling(model, args.data, retraining, args.subsets)))
    (args.work / "selections.json").write_text(json.dumps(selections(model, args.data, retraining, args.targets)))


def page(args: argparse.Namespace) -> None:
    """Writes evaluation.md and its plots."""
    write_page(args.work, args.out)


if __name__ == "__main__":
    main()
