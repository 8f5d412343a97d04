"""Reading large data in bounded memory, and what a second ingest of the same data costs.

    stream MODEL TRAIN: JSON lines of --gigabytes made of the rows of TRAIN, read and hashed as an ingest does, with
                        memory along the way; what knowing the file again costs; its first rows ingested
    again MODEL TRAIN:  a directory of JSON lines, ingested, again unchanged, grown by a few rows, and reread

TRAIN: JSON lines with question and answer, such as gsm8k. Times are wall clock.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curator import Curator
from curator.sources import Source, content_hash, is_unchanged, read_rows, resolve, seen, to_sample
from curator.types import Bookmark, Fields, Mark, Row, Sample

FIELDS = {"prompt_field": "question", "response_field": "answer", "id_field": "id"}
ROLES = Fields(prompt="question", response="answer", id="id")


def memory_mb() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def numbered(train: Path) -> Iterator[dict[str, Any]]:
    """The rows of the file over and over, each with an id and a text of its own."""
    rows = [row.columns for row in read_rows(train) if isinstance(row, Row)]
    for number in itertools.count():
        row = rows[number % len(rows)]
        yield {"id": number, "question": f"{number}. {row['question']}", "answer": row["answer"]}


def write(path: Path, rows: Iterator[dict[str, Any]], most_bytes: float, most_rows: int | None = None) -> int:
    """Writes rows until either limit; returns their number."""
    count = 0
    with path.open("w") as file:
        for row in itertools.islice(rows, most_rows):
            file.write(json.dumps(row) + "\n")
            count += 1
            if count % 1000 == 0 and file.tell() >= most_bytes:
                break
    return count


def read_all(source: Source, start: Mark | None = None) -> tuple[int, float, list[float], Mark]:
    """Rows, seconds, resident memory at ten moments, and the mark at the end."""
    marks: list[Mark] = []
    memory, count, size = [], 0, source.file.size() or 1
    started = time.perf_counter()
    for row in read_rows(source, start=start or Mark(), reached=lambda mark: marks.append(mark)):
        assert isinstance(row, Row)
        sample = to_sample(row, ROLES)
        assert isinstance(sample, Sample)
        content_hash(sample)
        count += 1
        if marks[-1].offset >= len(memory) * size / 10:
            memory.append(memory_mb())
        del marks[:-1]
    return count, time.perf_counter() - started, memory, marks[-1]


def stream(model: str, train: Path, folder: Path, gigabytes: float, part_rows: int) -> None:
    path = folder / "large.jsonl"
    rows = write(path, numbered(train), gigabytes * 1e9)
    time.sleep(2.5)  # younger files are not known by their stamp
    (source,) = resolve(path)
    size = path.stat().st_size
    count, seconds, memory, mark = read_all(source)
    assert count == rows
    print(f"read and hashed: {size / 1e9:.2f} GB, {count:,} rows in {seconds:.1f} s ({size / seconds / 1e6:.0f} MB/s)")
    print("resident MB along the file: " + ", ".join(f"{value:.0f}" for value in memory))
    known = Bookmark(mark, *seen(source)[1:])
    for name, bookmark in {"stamp": known, "hash": Bookmark(mark, None, known.size)}.items():
        started = time.perf_counter()
        assert is_unchanged(source, bookmark)
        print(f"known again by its {name}: {time.perf_counter() - started:.4f} s")
    with path.open("a") as file:
        file.write(json.dumps(next(numbered(train))) + "\n")
    count, seconds, _, _ = read_all(resolve(path)[0], mark)
    print(f"one row appended: {count} row read in {seconds:.2f} s, the hash of what lies before it checked")
    part = folder / "part.jsonl"
    write(part, numbered(train), float("inf"), part_rows)
    seen_memory: list[float] = []
    with Curator.open(folder / "store", device="cpu") as curator:
        started = time.perf_counter()
        report = curator.ingest(
            part, dataset="d", model=model, **FIELDS, on_progress=lambda _: seen_memory.append(memory_mb())
        )  # fmt: skip
        seconds = time.perf_counter() - started
    along = [seen_memory[len(seen_memory) * tenth // 10] for tenth in range(1, 10)]
    print(f"ingested: {report.added:,} rows, {part.stat().st_size / 1e6:.1f} MB, {seconds:.0f} s")
    print("resident MB along the ingest: " + ", ".join(f"{value:.0f}" for value in along))


def again(model: str, train: Path, folder: Path, files: int, rows_each: int) -> None:
    rows = numbered(train)
    data = folder / "data"
    data.mkdir()
    for number in range(files):
        write(data / f"{number:03d}.jsonl", rows, float("inf"), rows_each)

    def ingest(what: str, **options: Any) -> None:
        time.sleep(2.5)
        with Curator.open(folder / "store", device="cpu") as curator:
            started = time.perf_counter()
            report = curator.ingest(data, dataset="d", model=model, **FIELDS, **options)
            seconds = time.perf_counter() - started
        print(
            f"{what}: {seconds:.2f} s, {report.rows:,} rows read, {report.unread:,} known and not read, "
            f"{report.added:,} added, {report.replaced:,} replaced"
        )

    ingest("first")
    ingest("unchanged")
    ingest("unchanged, reread", reread=True)
    with (data / "000.jsonl").open("a") as file:
        for row in itertools.islice(rows, files * rows_each // 100):
            file.write(json.dumps(row) + "\n")
    ingest("grown by 1 %")
    text = (data / "001.jsonl").read_text().replace("#### ", "#### about ", 1)
    (data / "001.jsonl").write_text(text)
    ingest("one row changed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stream", "again"])
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--part-rows", type=int, default=3000)
    parser.add_argument("--files", type=int, default=30)
    parser.add_argument("--rows-each", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="Where to write. [default: a temporary directory]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.what == "stream":
            stream(given.model, given.train, Path(folder), given.gigabytes, given.part_rows)
        else:
            again(given.model, given.train, Path(folder), given.files, given.rows_each)


if __name__ == "__main__":
    main()
