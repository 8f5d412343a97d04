"""Refit: another projection, the same samples; whole or not at all; and never a worse one in silence."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from curator import Curator
from curator.errors import LockedError, NotFoundError, UsageError
from curator.refit import MAX_LOSS, _draw
from curator.store import Store
from curator.value import METHODS
from tests.models.tiny import save_tiny
from tests.stores import CORPUS, FIELDS, NAMED, QUESTION, add, contents, values_of

FIRST = [row for row in CORPUS if row["task"] == "addition"][:40]
LATER = [row for row in CORPUS if row["task"] in ("capital", "sentiment")][:120]
REST = [row for row in CORPUS if row["task"] == "opposite"][:10]
NUM = len(FIRST) + len(LATER)
ALL = {"positions": "all", "segment_tokens": 600}
QUERIES = [
    QUESTION,
    {"prompt": LATER[0]["prompt"], "response": " Paris"},
    {"prompt": "What is 3 + 4?", "response": " 7"},
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on additions, grown by questions of other kinds."""
    folder = tmp_path_factory.mktemp("drifted")
    with Curator.open(folder / "store", device="cpu") as curator:
        add(curator, folder / "a.jsonl", FIRST, **NAMED, **ALL, dataset="sums")
        add(curator, folder / "b.jsonl", LATER, **NAMED, **ALL, dataset="talk")
    return folder / "store"


@pytest.fixture
def grown(drifted: Path, tmp_path: Path) -> Iterator[Curator]:
    """A copy of that store, opened."""
    shutil.copytree(drifted, tmp_path / "store")
    with Curator.open(tmp_path / "store", create=False, device="cpu") as curator:
        yield curator


def exact_of(curator: Curator, **question: Any) -> dict[str, float]:
    """The exact value of every sample by key."""
    result = curator.query(**question, exact=True, rerank=NUM, top=NUM, harmful=0)
    assert len(result.helpful) == NUM
    return {item.key: item.value for item in result.helpful}


def correlations(curator: Curator) -> list[float]:
    """Spearman of the sketch with the exact value, by query."""
    found = []
    for question in QUERIES:
        exact, values = exact_of(curator, **question), values_of(curator, **question)
        found.append(float(spearmanr([exact[key] for key in values], list(values.values())).statistic))
    return found


def files_of(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.glob("s*/*/*")}


def test_values_of_a_drifted_corpus_come_closer_to_the_exact_ones(grown: Curator):
    before, low = correlations(grown), grown.status()["datasets"][1]["captured"]
    done = grown.refit(force=True)
    assert done["is_replaced"]
    assert done["captured"]["after"] > done["captured"]["before"] + 0.05
    after = correlations(grown)
    assert np.mean(after) > np.mean(before)
    assert grown.status()["datasets"][1]["captured"] > low + 0.05


def test_a_dataset_that_would_lose_keeps_the_old_projection(grown: Curator, run: Run):
    """However much the others gain: it is named with what it would lose, and only --force replaces all the same."""
    before, files = contents(grown), files_of(grown.path)
    done = grown.refit()
    sums, talk = done["datasets"]
    assert (done["is_better"], done["is_replaced"]) == (True, False)
    assert (sums["dataset"], sums["is_worse"], talk["dataset"], talk["is_worse"]) == ("sums", True, "talk", False)
    assert sums["before"] - sums["after"] > MAX_LOSS
    share = f"dataset sums ({sums['before']:.1%} -> {sums['after']:.1%})"
    code, out, err = run("refit", "--store", str(grown.path))
    assert f"  {sums['before']:.1%} -> {sums['after']:.1%}  sums\n" in out
    assert (code, err) == (
        1,
        f"curator: the new projection captures less of {share}: space {done['space'][:12]} stays; "
        "--force replaces it all the same\n",
    )
    code, out, err = run("refit", "--store", str(grown.path), "--json")
    assert (code, json.loads(out)["is_replaced"], len(err.splitlines())) == (1, False, 1)
    code, out, err = run("refit", "--store", str(grown.path), "--dry-run")
    assert (code, err) == (0, "")
    assert out.endswith(f"a refit would not replace it: it captures less of {share}\n")
    assert (contents(grown), files_of(grown.path)) == (before, files)
    assert run("refit", "--store", str(grown.path), "--force")[0] == 0
    assert contents(grown) != before


def test_where_no_dataset_loses_no_force_is_needed(grown: Curator):
    grown.delete('dataset = "sums"')
    done = grown.refit()
    assert done["is_replaced"]
    assert [(row["dataset"], row["is_worse"]) for row in done["datasets"]] == [("talk", False)]


@pytest.mark.parametrize("sizes", [[5_000], [5_000, 90, 7, 2, 1], [1] * 12, [300] * 50])
def test_samples_are_held_out_of_every_dataset(drifted: Path, sizes: list[int]):
    """At least 32 or a third of it, or fewer where datasets are many; a single sample may go into the fit."""
    with Curator.open(drifted, create=False, device="cpu") as curator, curator._store.session() as session:
        segments = curator._store.segments(session, 1)
        ids = np.split(np.random.default_rng(0).permutation(sum(sizes)) + 1, np.cumsum(sizes)[:-1])
        of_dataset = {f"d{number}": np.sort(some) for number, some in enumerate(ids)}
        fitted_on, held_out = _draw(of_dataset, segments, 0)
    assert len(np.intersect1d(fitted_on, held_out)) == 0
    assert (np.diff(fitted_on) > 0).all()
    assert (np.diff(held_out) > 0).all()
    least = min(32, 1_280 // len(sizes))
    for name, size in zip(of_dataset, sizes, strict=True):
        assert np.isin(held_out, of_dataset[name]).sum() >= min(least, max(size // 3, int(size > 1)))
    assert len(fitted_on) >= 0.5 * min(1_280, sum(sizes))


def test_everything_but_the_sketches_stays(grown: Curator):
    grown.delete("id = 1")
    before, factors = contents(grown), sorted((grown.path / "segments").glob("*/factors.safetensors"))
    kept = [path.read_bytes() for path in factors]
    reranked = grown.query(**QUESTION, rerank=NUM, top=NUM).helpful
    grown.refit(force=True)
    assert [row[:2] for row in contents(grown)] == [row[:2] for row in before]
    assert [p.read_bytes() for p in sorted((grown.path / "segments").glob("*/factors.safetensors"))] == kept
    assert grown.verify()["problems"] == []
    again = grown.query(**QUESTION, rerank=NUM, top=NUM).helpful
    near = {item.id: item.value for item in again}
    spread = max(abs(item.value) for item in reranked)
    assert all(abs(near[item.id] - item.value) < 0.02 * spread for item in reranked)
    assert grown.restore("id > 0")["restored"] == 1
    assert len(contents(grown)) == NUM


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_in_the_new_space(grown: Curator, method: Any):
    grown.refit(force=True)
    for how in ({"rerank": 0}, {}, {"exact": True}, {"where": 'label = "capital"'}):
        assert len(grown.query(**QUESTION, method=method, **how).helpful) == 10


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", [fail, interrupt])
@pytest.mark.parametrize("place", ["publish_projection", "write_sketches", "_commit", "captured_now"])
def test_stopped_anywhere_it_leaves_the_store_as_it_was(
    grown: Curator, monkeypatch: pytest.MonkeyPatch, place: str, how: Any
):
    before, files, space = contents(grown), files_of(grown.path), grown.status()["spaces"]
    monkeypatch.setattr(f"curator.refit.{place}", how)
    with pytest.raises((OSError, KeyboardInterrupt)):
        grown.refit(force=True)
    monkeypatch.undo()
    assert contents(grown) == before
    assert files_of(grown.path) == files
    assert list((grown.path / "tmp").iterdir()) == []
    assert grown.status()["spaces"] == space
    assert grown.verify()["problems"] == []


def test_killed_after_half_of_the_segments_it_leaves_the_old_generation(
    grown: Curator, monkeypatch: pytest.MonkeyPatch
):
    """Without the sweep at its end, as after kill -9: the next writer sweeps."""
    before, files, written = contents(grown), files_of(grown.path), []
    from curator import refit as module

    write = module.write_sketches

    def once(*arguments: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("curator.refit.write_sketches", once)
        patch.setattr(Store, "sweep", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            grown.refit(force=True)
    assert len(files_of(grown.path)) == len(files) + 2 * 3 + 2
    assert contents(grown) == before
    assert grown.verify()["problems"] == []
    assert grown.delete("id < 0") == 0
    assert files_of(grown.path) == files
    assert grown.refit(force=True)["is_replaced"]
    assert grown.verify()["problems"] == []


def test_another_opened_store_sees_the_new_space_at_its_next_query(grown: Curator):
    """And the stream of values that it began before ends as it began."""
    with Curator.open(grown.path, create=False, device="cpu") as other:
        before = contents(other)
        running = other.values(**QUESTION)
        began = [next(running)]
        done = grown.refit(force=True)
        assert [(row["id"], row["key"], row["value"]) for row in [*began, *running]] == before
        assert other.query(**QUESTION).how.space == done["space"]
        assert contents(other) == contents(grown) != before


def test_one_writes(grown: Curator):
    with Curator.open(grown.path, create=False, device="cpu") as other, grown._store.writing():
        with pytest.raises(LockedError):
            other.refit()
        assert not other.refit(dry_run=True)["is_replaced"]


def test_a_dry_run_tells_what_a_refit_does_and_changes_nothing(grown: Curator):
    before, files = contents(grown), files_of(grown.path)
    told = grown.refit(dry_run=True)
    assert (contents(grown), files_of(grown.path)) == (before, files)
    done = grown.refit(force=True)
    assert (told["captured"], told["datasets"]) == (done["captured"], done["datasets"])
    assert (told["is_replaced"], told["replaces"], done["replaces"]) == (False, None, told["space"])


def test_later_samples_go_on_in_the_new_space(grown: Curator, tmp_path: Path):
    done = grown.refit(force=True)
    report = add(grown, tmp_path / "c.jsonl", REST, **NAMED, **ALL, dataset="more")
    assert (report.space, report.is_new_space, report.added) == (done["space"], False, len(REST))
    ids = [row[0] for row in contents(grown)]
    assert ids == list(range(1, NUM + len(REST) + 1))
    assert add(grown, tmp_path / "a.jsonl", FIRST, **NAMED, **ALL, dataset="sums").present == len(FIRST)
    assert grown.verify()["problems"] == []


def test_the_old_space_is_said_to_be_gone(grown: Curator):
    old = grown.status()["spaces"][0]["fingerprint"]
    middle = grown.refit(force=True)["space"]
    last = grown.refit(force=True)["space"]
    for gone in (old, middle[:9]):
        with pytest.raises(NotFoundError, match=f"a refit has replaced it by {last[:12]}"):
            grown.query(**QUESTION, space=gone)
    assert grown.query(**QUESTION, space=last[:9]).how.space == last
    assert [path.name for path in (grown.path / "spaces").iterdir()] == [last]
    assert not list((grown.path / "indexes" / old[:16]).glob("*"))


def test_refitting_again_changes_little(grown: Curator):
    """The second finds nothing to gain and says so; forced, the values stay close to the first's."""
    grown.refit(force=True)
    first, captured = values_of(grown), grown.status()["spaces"][0]["captured"]
    again = grown.refit()
    assert (again["is_better"], again["is_replaced"]) == (False, False)
    assert values_of(grown) == first
    for seed in (1, 2):
        assert grown.refit(force=True, seed=seed)["is_replaced"]
    values = values_of(grown)
    assert spearmanr(list(first.values()), [values[key] for key in first]).statistic > 0.995
    assert grown.status()["spaces"][0]["captured"] == pytest.approx(captured, abs=0.02)


def test_only_the_chosen_space_is_refitted(grown: Curator, tmp_path: Path):
    chosen = grown.status()["spaces"][0]["fingerprint"]
    model = save_tiny(tmp_path / "model")
    add(grown, tmp_path / "c.jsonl", REST, **FIELDS, dataset="other", model=str(model))
    newest = grown.status()["spaces"][1]["fingerprint"]
    before = contents(grown)
    done = grown.refit(chosen[:10], force=True)
    after = [space["fingerprint"] for space in grown.status()["spaces"]]
    assert after == [done["space"], newest]
    assert done["replaces"] == chosen
    assert contents(grown) == before  # of the newest space
    assert grown.verify()["problems"] == []


def test_compaction_and_refit_follow_each_other(grown: Curator):
    grown.delete("id <= 15")
    grown.compact()
    grown.delete("id <= 20")
    assert grown.refit(force=True)["is_replaced"]
    assert len(contents(grown)) == NUM - 20
    grown.compact()
    assert grown.refit(force=True)["is_replaced"]
    assert [row[0] for row in contents(grown)] == list(range(21, NUM + 1))
    assert grown.verify()["problems"] == []


def test_too_few_samples_are_an_error(empty: Curator, tmp_path: Path):
    with pytest.raises(NotFoundError, match="no space yet"):
        empty.refit()
    add(empty, tmp_path / "a.jsonl", FIRST[:9], **NAMED)
    with pytest.raises(UsageError, match="at least 10 samples that are not deleted, the space has 9"):
        empty.refit()
    add(empty, tmp_path / "a.jsonl", FIRST[:10], **NAMED)
    assert empty.refit(force=True)["is_replaced"]
    assert len(contents(empty)) == 10


def test_the_command_line_gives_the_document_of_the_python_api(grown: Curator, run: Run):
    told = grown.refit(dry_run=True)
    code, out, err = run("refit", "--store", str(grown.path), "--dry-run", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document | {"seconds": 0} == told | {"seconds": 0}
    grown.delete('dataset = "sums"')
    code, out, err = run("refit", "--store", str(grown.path), "--dry-run")
    assert out.endswith(f"space {told['space'][:12]} stays in a dry run; a refit would replace it\n")
    code, out, err = run("refit", "--store", str(grown.path))
    assert (code, err) == (0, "")
    new = grown.status()["spaces"][0]["fingerprint"]
    assert f"space {told['space'][:12]} became {new[:12]}: {NUM} samples" in out
    assert "  talk\n" in out
    code, out, err = run("refit", "--store", str(grown.path))
    assert (code, err) == (0, "")
    assert f"space {new[:12]} stays: the new projection captures no more" in out


def test_an_interrupted_refit_says_so(grown: Curator, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curator.refit.write_sketches", interrupt)
    code, out, err = run("refit", "--store", str(grown.path), "--force")
    assert (code, out) == (130, "")
    assert err == "curator: interrupted; the store is as it was, the same command starts anew\n"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in {"FLAT_MAX_ROWS": 50, "YOUNG_ROWS": 40, "GROUP_ROWS": 120}.items():
        monkeypatch.setattr(f"index.faiss_index.{name}", rows)


@pytest.mark.usefixtures("small_shards")
def test_the_first_query_after_a_refit_finds_its_index_built(grown: Curator):
    done = grown.refit(force=True)
    built = set((grown.path / "indexes" / done["space"][:16]).glob("none-*.faiss"))
    assert built
    how = grown.query(**QUESTION).how
    assert (how.space, how.index["shards"]) == (done["space"], len(built))
    assert grown._opened is not None
    assert grown._opened.answering is not None
    assert not grown._opened.answering.indexes.get("none").num_missing


@pytest.mark.usefixtures("small_shards")
def test_interrupted_while_it_indexes_the_same_command_builds_the_rest(
    grown: Curator, run: Run, monkeypatch: pytest.MonkeyPatch
):
    """The new projection is in place then, and said to be."""
    old = grown.status()["spaces"][0]["fingerprint"]
    with monkeypatch.context() as patch:
        patch.setattr("index.faiss_index.build_shard", interrupt)
        code, out, err = run("refit", "--store", str(grown.path), "--force")
    assert (code, out) == (130, "")
    assert err == "curator: interrupted; the projection is in place, the same command builds what its index lacks\n"
    new = grown.status()["spaces"][0]["fingerprint"]
    assert new != old
    assert not list((grown.path / "indexes").rglob("*.faiss"))
    assert grown.verify()["problems"] == []
    assert run("refit", "--store", str(grown.path))[0] == 0
    assert grown.status()["spaces"][0]["fingerprint"] == new
    assert list((grown.path / "indexes" / new[:16]).glob("none-*.faiss"))


def test_progress_goes_to_stderr(grown: Curator, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curator.cli.refit._SECONDS_BETWEEN_LINES", 0.0)
    err = run("refit", "--store", str(grown.path), "--force")[2]
    assert err.splitlines()[0].startswith("fitting: 0 of 160 samples")
    assert err.splitlines()[-2].startswith("rewriting: 160 of 160 samples, ")
    assert err.splitlines()[-1] == "indexing: 160 samples"
    assert run("refit", "--store", str(grown.path), "--force", "--quiet")[2] == ""


def test_status_tells_when_a_refit_is_worth_it(grown: Curator, run: Run):
    """Before it names the dataset that fell; afterwards the reached energy is the reference, and it is silent."""
    advice = grown.status()["spaces"][0]["refit"]
    assert advice["is_worth_it"]
    (fallen,) = advice["datasets"]
    assert (fallen["dataset"], fallen["samples"]) == ("talk", len(LATER))
    assert fallen["from"] - fallen["to"] > 0.05
    shown = " ".join(run("status", "--store", str(grown.path))[1].split())
    assert f"120 samples of dataset talk since {fallen['since'][:10]}: curator refit would help" in shown
    grown.refit(force=True)
    assert grown.status()["spaces"][0]["refit"] == {"is_worth_it": False, "datasets": []}
    assert "curator refit" not in run("status", "--store", str(grown.path))[1]


def test_status_tells_captured_energy_over_time(grown: Curator):
    for row in grown.status()["datasets"]:
        history = row["history"]
        assert 2 <= len(history) <= 10
        assert sum(part["samples"] for part in history) == row["samples"]
        mean = sum(part["samples"] * part["captured"] for part in history) / row["samples"]
        assert mean == pytest.approx(row["captured"])
        assert [part["since"] for part in history] == sorted(part["since"] for part in history)
