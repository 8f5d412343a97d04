"""What is said of an answer's trust holds: the bound always, the recall at least as often as claimed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from curator import Curator
from curator.errors import UsageError
from curator.query.answer import QueryOptions
from curator.query.trust import CONFIDENCE, Bounds, Trust, bounds_of, check_end
from curator.value import DEFAULT_DAMPING, METHODS, Method
from index.intervals import Stratum, most_in, most_in_all
from tests.stores import CORPUS, NAMED, QUESTION, SIZE, VALIDATION, add


@given(st.integers(1, 60), st.data())
def test_the_bound_on_a_stratum_is_wrong_no_more_often_than_it_says(size: int, data: Any) -> None:
    """Over all that can be drawn: the chance that the true number is above the bound."""
    drawn, true = data.draw(st.integers(0, size)), data.draw(st.integers(0, size))
    found = range(max(0, drawn - (size - true)), min(drawn, true) + 1)
    wrong = sum(hypergeom.pmf(x, size, true, drawn) for x in found if most_in(Stratum(size, drawn, x), 0.1) < true)
    assert wrong <= 0.1 + 1e-9


def test_a_stratum_drawn_whole_is_known_and_one_not_drawn_is_not() -> None:
    assert most_in(Stratum(10, 10, 3), 0.05) == 3
    assert most_in(Stratum(10, 0, 0), 0.05) == 10
    assert most_in_all([Stratum(10, 10, 3), Stratum(5, 5, 0)], 0.05) == 3
    assert most_in_all([], 0.05) == 0


def corpus(generator: np.random.Generator, num: int) -> tuple[Bounds, np.ndarray]:
    """What the sketch says of a random corpus, and the exact values: within the slack, as the bound promises."""
    exact = generator.standard_normal(num) * np.exp(generator.standard_normal(num) * 0.7)
    slack = np.abs(generator.standard_normal(num)) * generator.choice([0.1, 1.0]) + 0.05
    middle = exact + slack * generator.uniform(-1, 1, num)
    return Bounds(np.arange(num, dtype=np.int64), middle, slack), exact


def checked(bounds: Bounds, exact: np.ndarray, k: int, sign: int = 1, **options: int) -> tuple[list[int], Any]:
    shown = np.argsort(-sign * bounds.middle)[:k].tolist()
    score = lambda ids: {id_: float(exact[id_]) for id_ in ids}  # noqa: E731
    found, trust = check_end(bounds, shown, sign, score, QueryOptions(**options))
    return [id_ for id_, _ in found], trust


@pytest.mark.parametrize("sign", [1, -1])
def test_the_recall_is_at_least_what_is_said_in_95_of_100_trials(sign: int) -> None:
    """Random corpora and strata; what is shown before the random ones were run is what the bound is about."""
    holds, says_something = [], []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        bounds, exact = corpus(generator, 300)
        k = int(generator.integers(1, 15))
        found, trust = checked(bounds, exact, k, sign, trust=int(generator.integers(20, 500)))
        true = set(np.argsort(-sign * exact)[:k].tolist())
        holds.append(len(true & set(found)) / k >= trust.recall_at_least - 1e-9)
        says_something.append(trust.recall_at_least > 0)
    assert np.mean(holds) >= CONFIDENCE
    assert np.mean(says_something) > 0.5


def test_what_is_certain_is_always_so() -> None:
    """Of any corpus within its bounds: so many of those shown are among the true best."""
    for seed in range(200):
        generator = np.random.default_rng(seed)
        bounds, exact = corpus(generator, 200)
        k, limit = int(generator.integers(1, 12)), int(generator.integers(1, 200))
        found, trust = checked(bounds, exact, k, certify=limit)
        true = np.argsort(-exact)[:k].tolist()
        assert len(set(true) & set(found)) >= trust.certain
        assert trust.run <= k + limit
        if trust.certain == k:
            assert found == true


def test_certifying_runs_no_sample_that_is_ruled_out_and_ends() -> None:
    generator = np.random.default_rng(5)
    bounds, exact = corpus(generator, 500)
    found, trust = checked(bounds, exact, 10, certify=500)
    assert found == np.argsort(-exact)[:10].tolist()
    assert trust.certain == 10
    assert trust.in_doubt == 0
    assert trust.run < 400


def test_samples_found_at_random_are_shown() -> None:
    """One sample is far better than its sketch says; when all in doubt are run, it must be there."""
    bounds = Bounds(np.arange(50), np.linspace(1, 0, 50), np.full(50, 10.0))
    exact = bounds.middle.copy()
    exact[37] = 5.0
    found, trust = checked(bounds, exact, 3, trust=100)
    assert found == [37, 0, 1]
    assert (trust.above, trust.drawn, trust.certain) == (1, 47, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_holds_for_every_sample_of_a_real_corpus(asked: Curator, method: Method) -> None:
    """|exact value - sketch value| <= slack, and it is not all slack."""
    exact = asked.query(**VALIDATION, method=method, exact=True, rerank=SIZE, top=SIZE, harmful=0).helpful
    from curator.query import parts_of, read_queries

    query = next(read_queries(parts_of({**VALIDATION})[0]))
    with asked._asking(None, None) as answering:
        prepared, _ = answering.prepare(query, method, DEFAULT_DAMPING)
        scale = "inverse_norm" if method == "cosine" else "none"
        bounds = bounds_of(answering.segments, prepared, scale, allowed=None, excluded=None)
    values = np.array([item.value for item in sorted(exact, key=lambda item: item.id)])
    errors = np.abs(values - bounds.middle)
    assert (errors <= bounds.slack).all()
    assert errors.max() > 0
    assert np.median(bounds.slack) < np.ptp(values)


@pytest.mark.parametrize("method", METHODS)
def test_a_certified_answer_is_the_exact_one(asked: Curator, method: Method) -> None:
    everything = asked.query(**VALIDATION, method=method, exact=True, rerank=SIZE, top=5, harmful=5)
    found = asked.query(**VALIDATION, method=method, certify=SIZE, top=5, harmful=5, rerank=5)
    for end in ("helpful", "harmful"):
        one, other = getattr(found, end), getattr(everything, end)
        assert [item.id for item in one] == [item.id for item in other]
        assert [item.value for item in one] == pytest.approx([item.value for item in other], rel=1e-4)
    assert found.how.tier == "exact"
    assert found.how.trust is not None
    assert found.how.trust["helpful"]["certain"] == 5
    assert any("helpful: certain" in note for note in found.notes)


def test_a_filter_and_deletes_bound_what_can_be_missed(copied: Curator) -> None:
    label = copied.query(**QUESTION, top=1).helpful[0].label
    copied.delete(f'label != "{label}"')
    left = copied.status()["datasets"][0]["samples"]
    found = copied.query(**QUESTION, trust=200, top=3, where="num_tokens > 0")
    assert found.how.trust is not None
    for end in ("helpful", "harmful"):
        assert found.how.trust[end]["run"] <= left
        assert found.how.trust[end]["recall_at_least"] == 1.0
    nothing = copied.query(**QUESTION, trust=200, where="num_tokens > 100000")
    assert nothing.helpful == []
    assert nothing.how.trust is not None
    assert nothing.how.trust["helpful"]["shown"] == 0


def test_after_a_refit_nothing_is_guaranteed(copied: Curator, tmp_path: Path) -> None:
    """Its sketches are of stored factors, which err by what no stored norm bounds."""
    add(copied, tmp_path / "more.jsonl", CORPUS[SIZE:300], **NAMED, dataset="more")
    before = copied.query(**QUESTION, certify=5, top=2, harmful=2)
    assert copied.refit(force=True)["is_replaced"]
    after = copied.query(**QUESTION, certify=5, top=2, harmful=2)
    for found, expected in ((before, True), (after, False)):
        assert found.how.trust is not None
        assert found.how.trust["helpful"]["is_guaranteed"] is expected
        assert any("as far as the refit" in note for note in found.notes) is not expected


def test_the_command_line_says_it_in_words(run: Any, asked: Curator) -> None:
    arguments = ["query", "--store", str(asked.path), "--prompt", QUESTION["prompt"], "--response", " Ottawa"]
    code, out, err = run(*arguments, "--trust", "10", "--top", "3", "--harmful", "3", "--json")
    assert code == 0
    assert set(json.loads(out)["how"]["trust"]) == {"helpful", "harmful"}
    assert "of the true 3 are shown" in err or "certain" in err
    with pytest.raises(UsageError, match="exclude each other"):
        asked.query(**QUESTION, trust=5, certify=5)
    assert json.loads(run(*arguments, "--json")[1])["how"]["trust"] is None


def test_a_promise_of_nothing_is_not_called_certain() -> None:
    few = Trust(10, 0, 0.0, 1.0, 30, 67, 20, 0, 0.1, 1.0, True)
    assert few.describe("helpful").startswith("helpful: nothing can be promised of the 10 shown: of 67 samples")
    some = replace(few, recall_at_least=0.8, confidence=0.95)
    assert some.describe("helpful").startswith("helpful: at least 80% of the true 10 are shown, with 95% confidence")
