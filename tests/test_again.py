"""The same data again: what is known is not read, and a watch goes on with what is new."""

import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator import Curator, demo
from curator.errors import UsageError
from curator.sources import paths
from tests.stores import CORPUS, NAMED, add, contents, write_jsonl

FEW = CORPUS[:6]
OPTIONS: dict[str, Any] = {"dataset": "demo", "model": str(demo.MODEL), **NAMED}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose rows are read."""
    found: list[str] = []
    read = __import__("curator.sources.rows", fromlist=["_read"])._read

    def noted(source: Any, *rest: Any) -> Iterator[Any]:
        found.append(source.name)
        return read(source, *rest)

    monkeypatch.setattr("curator.sources.rows._read", noted)
    return found


def test_unchanged_files_are_not_read_and_need_no_model(
    empty: Curator, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "a.jsonl", CORPUS[:4])
    write_jsonl(data / "b.jsonl.gz", CORPUS[4:8])
    first = add(empty, data, **NAMED)
    expected = contents(empty)
    opened.clear()
    with monkeypatch.context() as patched:
        patched.setattr("curator.ingest.run.load_for_ingest", None)
        for _ in range(2):
            report = add(empty, data, **NAMED)
            assert (report.rows, report.unread, report.unread_sources, report.added) == (0, 8, 2, 0)
        assert (report.num_samples, report.space, opened) == (8, first.space, [])
    write_jsonl(data / "c.jsonl", CORPUS[8:10])
    report = add(empty, data, **NAMED)
    assert (report.rows, report.added, report.unread, report.unread_sources) == (2, 2, 8, 2)
    assert contents(empty)[:8] == expected
    for options in ({"label_field": "is_wrong"}, {"reread": True}, {"id_field": None}, {"positions": "all"}):
        assert add(empty, data, **(NAMED | options)).rows == 10, options


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_was_appended_is_all_that_is_read(empty: Curator, tmp_path: Path, name: str):
    compress = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(compress(lines(CORPUS[:4])))
    add(empty, tmp_path / name, **NAMED)
    append(tmp_path / name, compress(lines(CORPUS[4:6]) + b"{broken\n"))
    report = add(empty, tmp_path / name, **NAMED)
    assert (report.rows, report.added, report.quarantined, report.unread) == (3, 2, 1, 4)
    assert [row["row"] for row in empty.quarantined()] == [6]
    (tmp_path / name).write_bytes(compress(lines(CORPUS[1:7])))
    report = add(empty, tmp_path / name, **NAMED)
    assert (report.rows, report.present, report.added, report.unread) == (6, 5, 1, 0)


def test_an_ingest_that_was_cut_off_goes_on_where_it_was(
    empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("curator.sources.bookmark._ROWS_BETWEEN", 3)
    rows = CORPUS[:30]
    with Curator.open(tmp_path / "straight", device="cpu") as straight:
        add(straight, tmp_path / "a.jsonl", rows, segment_samples=4)
        expected = contents(straight)

    def interrupt(progress: Any) -> None:
        if progress.samples > 8:
            raise KeyboardInterrupt

    report = add(empty, tmp_path / "a.jsonl", segment_samples=4, on_progress=interrupt)
    assert (report.is_interrupted, report.num_samples) == (True, 8)
    report = add(empty, tmp_path / "a.jsonl", segment_samples=4)
    assert (report.added, report.unread + report.present) == (22, 8)
    assert 3 <= report.unread <= 8, "a bookmark lies before the first sample that is not committed, never behind it"
    assert contents(empty) == expected


def test_samples_that_were_forgotten_are_read_again(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    empty.delete("id <= 2")
    empty.compact()
    assert empty.restore("id > 0")["to_ingest_again"] == 2
    assert add(empty, tmp_path / "a.jsonl").added == 2


def test_one_broken_file_does_not_keep_the_others(empty: Curator, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl.gz").write_bytes(gzip.compress(lines(CORPUS[:300]))[:-20])
    write_jsonl(data / "b.jsonl", CORPUS[300:306])
    with pytest.raises(UsageError, match=r"a\.jsonl\.gz is damaged or incomplete"):
        add(empty, data)
    assert empty.status()["datasets"][0]["samples"] >= 6
    assert {"demo:0"} < {key for _, key, _ in contents(empty)}
    (data / "a.jsonl.gz").write_bytes(gzip.compress(lines(CORPUS[:300])))
    report = add(empty, data)
    assert (report.num_samples, report.unread_sources) == (306, 1)


def test_every_kind_of_source_makes_the_same_samples(empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.sources.test_arrow import save

    write_jsonl(tmp_path / "a.jsonl", CORPUS[:310])
    save(tmp_path / "saved", CORPUS[:310])
    add(empty, tmp_path / "a.jsonl", **NAMED)
    assert add(empty, str(tmp_path / "*.jsonl"), **NAMED).unread == 310
    report = add(empty, tmp_path / "saved", split="train", **NAMED)
    assert (report.added, report.present, report.replaced) == (0, 310, 0)
    assert add(empty, tmp_path / "saved", **NAMED).unread_sources == 2


class Rounds:
    """A watch, one round at a time; what happens between two rounds is given."""

    def __init__(self, curator: Curator, data: Path, monkeypatch: pytest.MonkeyPatch, **options: Any):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        self._reports = curator.watch(data, **(OPTIONS | options))

    def next(self) -> Any:
        return next(self._reports)


def test_a_watch_reads_what_is_new_with_the_model_it_has(
    empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    data.mkdir()
    rounds = Rounds(empty, data, monkeypatch)
    assert rounds.next().rows == 0  # an empty directory is waited for
    write_jsonl(data / "a.jsonl", CORPUS[:3])
    assert rounds.next().added == 3
    monkeypatch.setattr("curator.ingest.run.load_for_ingest", None)
    assert (rounds.next().rows, rounds.next().rows) == (0, 0)
    append(data / "a.jsonl", lines(CORPUS[3:4]) + lines(CORPUS[4:5])[:20])
    assert rounds.next().added == 1
    append(data / "a.jsonl", lines(CORPUS[4:5])[20:])
    report = rounds.next()
    assert (report.added, report.quarantined) == (1, 0)
    append(data / "a.jsonl", lines(CORPUS[5:6])[:-1])
    assert rounds.next().added == 0
    assert rounds.next().added == 1  # it has stood still: that is its last line
    assert [key for _, key, _ in contents(empty)] == [row["id"] for row in CORPUS[:6]]


def test_a_watch_tells_a_broken_file_once_and_tries_it_again_when_it_changes(
    empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_jsonl(tmp_path / "a.jsonl", FEW)
    rounds = Rounds(empty, tmp_path, monkeypatch)
    assert rounds.next().added == 6
    (tmp_path / "b.parquet").write_bytes(b"PAR1 half")
    assert [Path(source).name for source in rounds.next().broken] == ["b.parquet"]
    assert rounds.next().broken == {}
    append(tmp_path / "b.parquet", b" more")
    assert len(rounds.next().broken) == 1
    append(tmp_path / "a.jsonl", lines(CORPUS[6:7]))
    report = rounds.next()
    assert (report.added, report.broken) == (1, {})


def test_a_watch_replaces_what_has_changed_and_waits_for_the_lock(
    empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_jsonl(tmp_path / "a.jsonl", FEW)
    rounds = Rounds(empty, tmp_path / "a.jsonl", monkeypatch)
    rounds.next()
    write_jsonl(tmp_path / "a.jsonl", [{**FEW[0], "response": " other"}, *FEW[1:]])
    with Curator.open(empty.path) as other, other._store.writing():
        assert rounds.next().is_locked
    assert rounds.next().replaced == 1


def test_a_watch_raises_in_its_first_round_only(empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_jsonl(tmp_path / "a.jsonl", FEW)
    with pytest.raises(UsageError, match="none of the first"):
        Rounds(empty, tmp_path, monkeypatch, response_field="nothing").next()
    with pytest.raises(UsageError, match="cannot be watched"):
        next(empty.watch("-", dataset="d"))
    with pytest.raises(UsageError, match="interval"):
        next(empty.watch(tmp_path, dataset="d", interval=0))
    moved = tmp_path / "data"
    moved.mkdir()
    write_jsonl(moved / "a.jsonl", FEW)
    rounds = Rounds(empty, moved, monkeypatch)
    rounds.next()
    shutil.rmtree(moved)
    assert "does not exist" in str(rounds.next().broken)
    moved.mkdir()
    write_jsonl(moved / "a.jsonl", CORPUS[:7])
    assert rounds.next().added == 1


def test_the_command_line_watches_until_it_is_stopped(
    run: Any, empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_jsonl(tmp_path / "a.jsonl", FEW)
    add(empty, tmp_path / "a.jsonl", **NAMED)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread() or seconds != 0.25:
            return
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        append(tmp_path / "a.jsonl", lines(CORPUS[6:7]) + b"{bad\n")

    monkeypatch.setattr("time.sleep", sleep)
    columns = ["--prompt-field", "prompt", "--response-field", "response", "--id-field", "id", "--label-field", "task"]
    command = ["ingest", str(tmp_path / "*.jsonl"), "--store", str(empty.path), "--dataset", "demo", *columns]
    code, out, err = run(*command, "--device", "cpu", "--watch", "--interval", "0.25")
    assert (code, out) == (0, "")
    first, second = err.splitlines()
    assert first.endswith(" nothing new")
    assert second.endswith(" 2 rows read: 1 added, 1 quarantined; 7 samples in all")


def test_bad_data_are_one_line_on_the_command_line(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_jsonl(tmp_path / "a.jsonl", FEW)
    (tmp_path / "closed").mkdir()

    def refuse(folder: Any, *_: Any, onerror: Any, **__: Any) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", str(folder)))
        yield from ()

    store = ["--store", str(tmp_path / "s"), "--dataset", "d", "--model", str(demo.MODEL)]
    for data, code, said in (
        (str(tmp_path / "none*.jsonl"), 4, "matches nothing"),
        ("http://localhost/a.jsonl", 2, "--allow-http"),
        ("hf://datasets/some/name", 2, "cannot be reached"),
        ("-", 2, "needs --format"),
    ):
        found, _, err = run("ingest", data, *store)
        assert (found, said in err, err.count("\n")) == (code, True, 1), err
    monkeypatch.setattr(paths.os, "walk", refuse)
    found, _, err = run("ingest", str(tmp_path / "closed"), *store)
    assert (found, err.count("\n"), "cannot be listed" in err) == (2, 1, True)
