"""Arrow files and streams, and the directories that datasets.save_to_disk writes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest

from curator.errors import UsageError
from curator.sources import SourceOptions, read_rows, resolve
from curator.types import Mark, Row
from tests.sources.files import columns_of, read

ROWS = [{"text": f"row {number}", "n": number} for number in range(500)]


def write_stream(path: Path, rows: list[dict[str, Any]] = ROWS, size: int = 100) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, size)
    return path


def write_file(path: Path, rows: list[dict[str, Any]] = ROWS, size: int = 100) -> Path:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), path, chunksize=size, compression="lz4")
    return path


def save(folder: Path, rows: list[dict[str, Any]] = ROWS, **state: Any) -> Path:
    """What datasets 2.0 and later write, as far as reading needs it."""
    folder.mkdir(parents=True)
    write_stream(folder / "data-00000-of-00002.arrow", rows[:300])
    write_stream(folder / "data-00001-of-00002.arrow", rows[300:])
    write_stream(folder / "cache-1234.arrow", rows[:5])
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"} | state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows_of(folder: Path, **options: Any) -> list[dict[str, Any]]:
    sources = resolve(folder, SourceOptions(**options))
    return [row.columns for source in sources for row in read_rows(source) if isinstance(row, Row)]


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_files_and_streams_come_back_equal_from_any_row_on(tmp_path: Path, write: Any):
    path = write(tmp_path / "a.arrow")
    assert columns_of(path) == ROWS
    for row in (0, 1, 99, 100, 257, 500):
        found = list(read_rows(path, start=Mark(row)))
        assert found == [Row(path.as_posix(), number, ROWS[number]) for number in range(row, 500)]


def test_a_stream_that_was_cut_is_never_taken_for_a_shorter_one(tmp_path: Path):
    path = write_stream(tmp_path / "a.arrow", size=50)
    content = path.read_bytes()
    for cut in range(len(content) - 1, 300, -97):
        path.write_bytes(content[:cut])
        with pytest.raises(UsageError, match="damaged or incomplete"):
            read(path)
    (tmp_path / "b.arrow").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(UsageError, match="Feather of version 1"):
        read(tmp_path / "b.arrow")


def test_a_saved_dataset_is_the_files_of_its_state(tmp_path: Path):
    assert rows_of(save(tmp_path / "saved")) == ROWS
    assert rows_of(tmp_path) == ROWS  # also below another directory
    assert rows_of(tmp_path / "saved", split="train") == ROWS
    with pytest.raises(UsageError, match="split 'train', not 'test'"):
        resolve(tmp_path / "saved", SourceOptions(split="test"))


def test_of_several_splits_one_is_chosen(tmp_path: Path):
    save(tmp_path / "saved" / "train")
    save(tmp_path / "saved" / "test", ROWS[:301])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert rows_of(tmp_path / "saved", split="test") == ROWS[:301]
    assert len(rows_of(tmp_path / "saved", split="all")) == 801
    with pytest.raises(UsageError, match="has several splits: train, test; choose one with --split, or all"):
        resolve(tmp_path / "saved")
    with pytest.raises(UsageError, match="has no split 'dev'; it has: train, test"):
        resolve(tmp_path / "saved", SourceOptions(split="dev"))


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": None},
        {"_data_files": [{"filename": "../x.arrow"}]},
        {"_indices_data_files": [{"filename": "i"}]},
    ],
    ids=["none", "outside", "selection"],
)
def test_a_dataset_saved_by_another_version_is_told_in_one_line(tmp_path: Path, state: dict[str, Any]):
    with pytest.raises(UsageError, match="another version of datasets") as caught:
        resolve(save(tmp_path / "saved", **state))
    assert "\n" not in str(caught.value)
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UsageError, match="damaged; save it again"):
        resolve(tmp_path / "saved")
