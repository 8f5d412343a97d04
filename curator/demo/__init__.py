"""The demo that ships with the package: a small model, a corpus with known mistakes, validation sets.

`scripts/make_demo_corpus.py` and `scripts/train_demo_model.py` write all of it. Rows have `id`, `prompt`, `response`,
`task` and `is_wrong`.
"""

from pathlib import Path

__all__ = ["CORPUS", "MODEL", "VALIDATION"]

_FOLDER = Path(__file__).resolve().parent

MODEL = _FOLDER / "model"
CORPUS = _FOLDER / "corpus.jsonl"
VALIDATION = {task: _FOLDER / f"validation_{task}.jsonl" for task in ("addition", "group", "sentiment", "weekday")}
