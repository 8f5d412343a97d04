"""The digits experiment in small: what a vision-language model has learnt, its values tell."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_values_of_a_model_that_knows_digits_find_wrong_answers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = Path(__file__).parent.parent / "scripts" / "digits.py"
    specification = importlib.util.spec_from_file_location("digits", path)
    assert specification is not None
    assert specification.loader is not None
    digits: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(digits)
    found = digits.run(tmp_path, num_corpus=150, num_asked=20, seconds=0.0, steps=350, out=tmp_path / "digits.md")
    assert found["accuracy"] > 0.4, "it has learnt something"
    assert found["detection"][0.3]["cosine"][0] > 0.7
    assert found["detection"][0.3]["audit"][0] > 0.7
    assert found["retrieval"]["cosine"][0] > 0.5
    assert (tmp_path / "digits.png").stat().st_size > 1_000
