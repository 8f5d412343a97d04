"""Which files hold the data: paths and directories become a list of readable files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curator.errors import NotFoundError, UsageError

__all__ = ["SUFFIXES", "DataFormat", "data_format", "resolve"]

FormatName = Literal["json", "csv", "parquet"]
Compression = Literal["", ".gz", ".zst"]

_TEXT_FORMATS: dict[str, FormatName] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_COMPRESSIONS: tuple[Compression, ...] = ("", ".gz", ".zst")

SUFFIXES = ".jsonl, .ndjson, .json (JSON lines), .csv, .tsv, each also with .gz or .zst, and .parquet"


@dataclass(frozen=True, slots=True)
class DataFormat:
    """What a file's name says about its content. `suffix` is without the compression: ".jsonl", ".tsv" ..."""

    name: FormatName
    suffix: str
    compression: Compression = ""


def data_format(path: Path) -> DataFormat | None:
    """The format that the file's name stands for, in any case of letters; None where it is not one that is read."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return DataFormat("parquet", ".parquet")
    for suffix, format_name in _TEXT_FORMATS.items():
        for compression in _COMPRESSIONS:
            if name.endswith(suffix + compression):
                return DataFormat(format_name, suffix, compression)
    return None


def resolve(data: Sequence[str | Path]) -> list[Path]:
    """The data files that `data` names, as absolute paths, each file once.

    Files keep the order given; a directory stands for its readable files at any depth, sorted by name, without
    hidden files and without files of other suffixes.

    Raises NotFoundError for a path that does not exist, and UsageError for a named file of an unknown suffix, for a
    directory without data files, and for no path at all.
    """
    # A str is a sequence of str too: without this, "train.jsonl" would be looked up letter by letter.
    given = [data] if isinstance(data, str | Path) else list(data)
    if not given:
        raise UsageError(f"no data given: name at least one file or directory ({SUFFIXES})")
    found: dict[str, Path] = {}
    for item in given:
        for path in _files_of(Path(os.path.abspath(Path(item).expanduser()))):
            # Two names of one file (a link, a/../a) are one file; the first name is kept.
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(_walk(path), key=lambda file: file.relative_to(path).parts)
        if not files:
            raise UsageError(f"{path} holds no data files: expected at least one of {SUFFIXES}")
    else:
        files = [path]
    for file in files:
        _check_file(file)
    return files


def _check_file(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist: check the path")
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file: write the data to a file first")
    if data_format(path) is None:
        raise UsageError(f"{path} has a suffix that is not read: expected one of {SUFFIXES}")


def _walk(root: Path) -> Iterator[Path]:
    """Readable files below `root`. Linked directories are followed, each real directory once, so a loop ends."""
    visited = {os.path.realpath(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        kept = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            is_store = os.path.exists(os.path.join(real, "FORMAT_VERSION"))  # its files are no data
            if not name.startswith(".") and real not in visited and not is_store:
                visited.add(real)
                kept.append(name)
        subfolders[:] = kept
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and data_format(path) is not None:
                yield path


def _cannot_list(error: OSError) -> None:
    # os.walk would skip the folder in silence, and its data would be missing without a word.
    raise UsageError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions")
