"""Vector indexes beside queries: nothing is built before an answer, everything after it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from curator import Curator
from curator.query import Answering
from index.device_scan import DeviceScan
from tests.stores import QUESTION, SIZE


def shards(curator: Curator) -> set[Path]:
    return set((curator.path / "indexes").rglob("*.faiss"))


def answering_of(curator: Curator) -> Answering:
    assert curator._opened is not None
    assert curator._opened.answering is not None
    return curator._opened.answering


def ranked(result: Any) -> list[tuple[int, float]]:
    return [(item.id, item.value) for item in (*result.helpful, *result.harmful)]


def test_a_query_without_index_is_right_at_once_and_the_index_is_built_beside_it(indexed: Curator):
    expected = indexed.query(**QUESTION)
    wanted = shards(indexed)
    shutil.rmtree(indexed.path / "indexes")
    indexed._opened = None
    first = indexed.query(**QUESTION)
    assert (first.how.index["shards"], first.how.index["scanned"]) == (0, SIZE)
    assert ranked(first) == ranked(expected)
    answering_of(indexed).indexes.wait()
    assert {path.name for path in shards(indexed)} == {path.name for path in wanted}
    second = indexed.query(**QUESTION)
    assert second.how.index["shards"] == len(wanted)
    assert ranked(second) == ranked(expected)


def test_the_index_of_cosine_is_refreshed_once_a_query_has_made_it(indexed: Curator):
    assert not any(path.name.startswith("inverse_norm") for path in shards(indexed))
    indexed.query(**QUESTION, method="cosine")
    answering_of(indexed).indexes.wait()
    made = {path.name for path in shards(indexed)}
    assert any(name.startswith("inverse_norm") for name in made)
    result = indexed.query(**QUESTION, method="cosine")
    assert result.how.index["type"] == "rabitq"
    assert result.how.index["shards"] > 0


def test_a_store_that_changed_shares_the_shards_that_still_fit(indexed: Curator):
    indexed.query(**QUESTION)
    before = answering_of(indexed).indexes.get("none")._shards
    with Curator.open(indexed.path, device="cpu") as other:
        other.delete("id = 1")
    assert all(item.id != 1 for item in indexed.query(**QUESTION, top=SIZE).helpful)
    after = answering_of(indexed).indexes.get("none")._shards
    assert before
    assert all(after[key] is shard for key, shard in before.items())


def test_a_device_that_holds_the_sketches_answers_as_the_scan_does(copied: Curator, monkeypatch: pytest.MonkeyPatch):
    expected = copied.query(**QUESTION)
    copied._opened = None
    monkeypatch.setattr(DeviceScan, "fits", staticmethod(lambda segments, device: True))
    found = copied.query(**QUESTION)
    assert found.how.index["type"] == "device"
    assert ranked(found) == ranked(expected)
