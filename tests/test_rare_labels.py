"""Samples that share a rare label with a query are found where the sketch is blind to it, and only where allowed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator import Curator
from curator.value import Ranks, calibrate
from index.rare_tokens import RARE_TOKENS_FILE
from tests.stores import CORPUS, NAMED, add

ROWS = CORPUS[::4]
ASKED = [row for row in CORPUS[1::4] if row["task"] == "capital"]
RERANK = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with sketches of 8 numbers out of 4 directions of the errors: as blind as they would be with V = 10^6."""
    folder = tmp_path_factory.mktemp("made")

    def narrow(*args: Any, ranks: Ranks, **options: Any) -> Any:
        return calibrate(*args, ranks=Ranks(error=4, hidden=2, factor=ranks.factor, width=8), **options)

    with pytest.MonkeyPatch.context() as patch, Curator.open(folder / "store", device="cpu") as curator:
        patch.setattr("curator.ingest.run.calibrate", narrow)
        add(curator, folder / "rows.jsonl", ROWS, **NAMED, segment_samples=80)
    return folder / "store"


@pytest.fixture
def curator(made: Path, tmp_path: Path) -> Iterator[Curator]:
    with Curator.open(shutil.copytree(made, tmp_path / "store"), create=False, device="cpu") as opened:
        yield opened


def question(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "response": row["response"]}


def same_answer(row: dict[str, Any]) -> set[str]:
    return {other["id"] for other in ROWS if other["response"] == row["response"]}


def found(curator: Curator, row: dict[str, Any], **how: Any) -> set[str]:
    return {item.key for item in curator.query(**question(row), rerank=RERANK, **how).helpful} & same_answer(row)


def asked(curator: Curator) -> list[dict[str, Any]]:
    """Questions whose answer some samples have, of which the exact values say that they help most."""
    rows = []
    for row in ASKED:
        if same_answer(row):
            best = curator.query(**question(row), exact=True, rerank=len(ROWS), top=1).helpful[0]
            rows += [row] if best.key in same_answer(row) else []
    assert len(rows) >= 3
    return rows


def test_what_the_sketch_misses_is_found(curator: Curator, monkeypatch: pytest.MonkeyPatch):
    rows = asked(curator)
    with_lists = [found(curator, row) for row in rows]
    result = curator.query(**question(rows[0]), rerank=RERANK)
    assert 0 < result.how.rare_candidates <= 2 * (RERANK // 4)
    assert result.how.rare_candidates < result.how.candidates <= 2 * 10 + 2 * (RERANK // 4)
    monkeypatch.setattr("curator.query.answer.RARE_SHARE", 0)
    without = [found(curator, row) for row in rows]
    assert curator.query(**question(rows[0]), rerank=RERANK).how.rare_candidates == 0
    assert all(with_lists)
    assert sum(map(bool, without)) < len(rows)


@pytest.mark.parametrize("method", ["raw", "cosine", "preconditioned"])
@pytest.mark.parametrize("exact", [False, True])
def test_every_method_and_the_exact_tier_look_at_them(curator: Curator, method: Any, exact: bool):
    result = curator.query(**question(asked(curator)[0]), rerank=RERANK, method=method, exact=exact)
    assert result.how.rare_candidates > 0
    values = [item.value for item in result.helpful]
    assert values == sorted(values, reverse=True)
    assert len({item.id for item in result.helpful}) == len(values)


def test_without_rerank_no_list_is_read(curator: Curator):
    assert curator.query(**question(ASKED[0]), rerank=0).how.rare_candidates == 0


def test_a_filter_and_a_delete_hold(curator: Curator):
    row = asked(curator)[0]
    keys = found(curator, row)
    ids = {item.id for item in curator.query(**question(row), rerank=RERANK).helpful if item.key in keys}
    assert ids
    for id_ in ids:
        assert not {item.id for item in curator.query(**question(row), where=f"id != {id_}").helpful} & {id_}
    assert all(item.label == "group" for item in curator.query(**question(row), where='label = "group"').helpful)
    curator.delete(" or ".join(f"id = {id_}" for id_ in sorted(ids)))
    assert not found(curator, row) & keys
    curator.compact()
    result = curator.query(**question(row), rerank=RERANK)
    assert not {item.id for item in (*result.helpful, *result.harmful)} & ids
    assert result.how.rare_candidates > 0


def test_lists_that_are_written_again_give_the_same_answer(curator: Curator):
    """A store of an earlier release has none: it answers without them, and compaction writes them."""
    row = asked(curator)[0]
    before = [(item.id, item.value) for item in curator.query(**question(row), rerank=RERANK).helpful]
    for path in sorted((curator.path / "segments").glob(f"*/{RARE_TOKENS_FILE}")):
        path.unlink()
    with Curator.open(curator.path, create=False, device="cpu") as opened:
        assert opened.query(**question(row), rerank=RERANK).how.rare_candidates == 0
        assert opened.verify()["problems"]
        opened.delete("id = 1")
        opened.compact()
        assert not opened.verify()["problems"]
    assert sorted((curator.path / "segments").glob(f"*/{RARE_TOKENS_FILE}"))
    assert 1 not in {id_ for id_, _ in before}
    with Curator.open(curator.path, create=False, device="cpu") as opened:
        after = [(item.id, item.value) for item in opened.query(**question(row), rerank=RERANK).helpful]
    assert after == before
