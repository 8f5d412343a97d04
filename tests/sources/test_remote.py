"""Sources that are no files here: fsspec, the hub, http by leave, standard input; and globs."""

import functools
import http.server
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from curator.errors import CuratorError, NotFoundError, UsageError
from curator.sources import SourceOptions, is_unchanged, read_rows, resolve, seen
from curator.types import Bookmark, Mark, Row
from tests.sources.files import write_jsonl, write_parquet

ROWS = [{"text": f"row {number}"} for number in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def rows_of(data: Any, **options: Any) -> list[dict[str, Any]]:
    sources = resolve(data, SourceOptions(**options))
    return [row.columns for source in sources for row in read_rows(source) if isinstance(row, Row)]


def test_globs_stand_for_the_data_files_they_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a.jsonl", "b.jsonl", "deep/er/c.jsonl", "deep/.hidden.jsonl", "[x].jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, ROWS[:1])
    (tmp_path / "note.txt").touch()
    monkeypatch.chdir(tmp_path)

    def names(pattern: str) -> list[str]:
        return [source.name for source in resolve(pattern)]

    assert names("?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("**/*.jsonl") == ["[x].jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]
    assert names("*") == ["[x].jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]
    assert names("[x].jsonl") == ["[x].jsonl"]  # a file of this name is there
    with pytest.raises(NotFoundError, match=r"none\*\.jsonl matches nothing"):
        resolve("none*.jsonl")
    with pytest.raises(UsageError, match="matches 1 paths and none is a data file"):
        resolve("*.txt")


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_what_fsspec_opens_is_read_and_known_again(memory: Any, tmp_path: Path):
    memory.pipe("/data/a.jsonl", LINES)
    memory.pipe("/data/deep/b.parquet", write_parquet(tmp_path / "b.parquet", ROWS).read_bytes())
    memory.pipe("/data/readme.md", b"x")
    assert rows_of("memory://data/a.jsonl") == ROWS
    assert rows_of("memory://data") == ROWS * 2
    assert rows_of("memory://data/**/*.parquet") == ROWS
    (source,) = resolve("memory://data/a.jsonl")
    marks: list[Mark] = []
    assert len(list(read_rows(source, reached=marks.append))) == 300
    known = Bookmark(marks[-1], *seen(source)[1:])
    assert is_unchanged(source, known)
    memory.pipe("/data/a.jsonl", LINES + b'{"text": "new"}\n')
    assert not is_unchanged(source, known)
    assert [row.columns for row in read_rows(source, start=known.mark)] == [{"text": "new"}]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://none.jsonl", NotFoundError, "does not exist"),
        ("nothing://x/a.jsonl", UsageError, "cannot be reached: Protocol not known"),
        ("simplecache::memory://a.jsonl", UsageError, "chained URLs are not read"),
        ("http://localhost/a.jsonl", UsageError, "only with --allow-http"),
        ("https://localhost/a.jsonl", UsageError, "only with --allow-http"),
        ("hf://datasets/some/name", UsageError, "cannot be reached: .*offline"),
    ],
)
def test_what_cannot_be_opened_is_one_line(url: str, error: type[CuratorError], message: str):
    with pytest.raises(error, match=message) as caught:
        resolve(url)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(UsageError, match="needs a driver that is not installed: Install s3fs"):
        resolve("s3://bucket/a.jsonl")


class Hub(DirFileSystem):
    """A directory in the place of the hub."""

    protocol = "hf"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = Hub(path=str(tmp_path), fs=LocalFileSystem())
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, url.removeprefix("hf://")))
    return tmp_path / "datasets" / "some"


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"text": name}])


def test_a_dataset_of_the_hub_is_what_its_card_says(hub: Path):
    put(hub / "card", "main/a-1.jsonl", "main/a-2.jsonl", "main/b.jsonl", "other/a.jsonl", "extra.jsonl")
    (hub / "card" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/a-*.jsonl\n"
        "  - split: test\n    path: [main/b.jsonl]\n- config_name: other\n  data_files: other/a.jsonl\n---\ntext\n"
    )
    url = "hf://datasets/some/card"
    assert rows_of(url, config="main", split="train") == [{"text": "main/a-1.jsonl"}, {"text": "main/a-2.jsonl"}]
    assert rows_of(url, config="main", split="test") == [{"text": "main/b.jsonl"}]
    assert rows_of(url, config="other") == [{"text": "other/a.jsonl"}]
    assert rows_of(f"{url}/extra.jsonl") == [{"text": "extra.jsonl"}]
    with pytest.raises(UsageError, match="has several configs: main, other; choose one with --config"):
        resolve(url)
    with pytest.raises(UsageError, match="has several splits: train, test"):
        resolve(url, SourceOptions(config="main"))


def test_a_dataset_without_a_card_goes_by_its_names_else_by_the_hubs_copy(hub: Path):
    put(hub / "plain", "data/train-0.jsonl", "data/test-0.jsonl", "data/val.jsonl")
    assert rows_of("hf://datasets/some/plain", split="validation") == [{"text": "data/val.jsonl"}]
    assert rows_of("hf://datasets/some/plain", split="train") == [{"text": "data/train-0.jsonl"}]
    (hub / "script").mkdir()
    (hub / "script" / "load.py").touch()
    with pytest.raises(NotFoundError, match="no data files that can be read"):
        resolve("hf://datasets/some/script")
    copy = hub / "script@refs/convert/parquet" / "main" / "train"
    copy.mkdir(parents=True)
    write_parquet(copy / "0000.parquet", ROWS)
    assert rows_of("hf://datasets/some/script") == ROWS


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/a.jsonl" if "far" in self.path else "/a.jsonl")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_http_is_read_where_it_is_allowed(server: str, monkeypatch: pytest.MonkeyPatch):
    assert rows_of(f"{server}/a.jsonl", allow_http=True) == ROWS
    assert rows_of(f"{server}/moved.jsonl", allow_http=True) == ROWS
    assert "Last" not in str(seen(resolve(f"{server}/a.jsonl", SourceOptions(allow_http=True))[0]).stamp)
    for path, message in {
        "none.jsonl": "answers 404",
        "moved-far.jsonl": "from http to ftp is not followed",
    }.items():
        with pytest.raises(UsageError, match=message):
            rows_of(f"{server}/{path}", allow_http=True)
    with pytest.raises(UsageError, match="cannot be reached"):
        rows_of("http://127.0.0.1:9/a.jsonl", allow_http=True)
    monkeypatch.setattr("curator.sources.download.MAX_BYTES", 100)
    with pytest.raises(UsageError, match="is larger than"):
        rows_of(f"{server}/a.jsonl", allow_http=True)


def test_standard_input_is_called_by_its_content(monkeypatch: pytest.MonkeyPatch):
    def piped(content: bytes, name: str | None) -> Any:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return resolve("-", SourceOptions(format=name))[0]

    first = piped(LINES, "jsonl")
    assert [row.columns for row in read_rows(first)] == ROWS
    assert first.location == piped(LINES, "jsonl").location != piped(LINES[1:], "jsonl").location
    assert [row.columns for row in read_rows(piped(b"text\tn\nx\t1\n", "tsv"))] == [{"text": "x", "n": "1"}]
    with pytest.raises(UsageError, match="needs --format, one of jsonl, csv, tsv"):
        piped(LINES, None)
