"""Directories that `datasets.save_to_disk` wrote: Arrow streams beside state.json, one directory a split.

Read without the datasets library: state.json lists the files in order, dataset_dict.json the splits.
"""

import json
from pathlib import Path
from typing import Any

from curator.errors import UsageError

__all__ = ["choose", "saved_files"]

_STATE, _SPLITS = "state.json", "dataset_dict.json"
ALL = "all"


def saved_files(folder: Path, split: str | None) -> list[Path] | None:
    """The Arrow files of a saved dataset, or of a split of several; None where the directory is no saved dataset.

    Raises UsageError for a directory of another version, and where there are several splits and none is chosen.
    """
    if (folder / _SPLITS).is_file():
        splits = _read(folder / _SPLITS).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise UsageError(f"{folder / _SPLITS} lists no splits: {_OTHER_VERSION}")
        chosen = choose(str(folder), "split", split, splits)
        return [path for name in chosen for path in _files(folder / name)]
    if not (folder / _STATE).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    saved = _read(folder / _STATE).get("_split")
    if split not in (None, ALL, saved):
        raise UsageError(f"{folder} is a saved dataset of the split {saved!r}, not {split!r}: leave --split out")
    return _files(folder)


_OTHER_VERSION = (
    "it was saved by another version of datasets than is known here; "
    "load it there and write it with to_parquet, or save_to_disk of datasets 2.0 or newer"
)


def _files(folder: Path) -> list[Path]:
    path = folder / _STATE
    if not path.is_file():
        raise UsageError(f"{folder} holds no {_STATE}: the saved dataset is incomplete; save it again")
    state = _read(path)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UsageError(f"{folder} keeps its rows as a selection of others: {_OTHER_VERSION}")
    files = state.get("_data_files")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not names or not all(name.endswith(".arrow") and Path(name).name == name for name in names):
        raise UsageError(f"{path} lists no data files: {_OTHER_VERSION}")
    return [folder / name for name in names]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): the saved dataset is damaged; save it again") from error
    return found if isinstance(found, dict) else {}


def choose(where: str, what: str, given: str | None, known: list[str]) -> list[str]:
    """The split or config that was asked for, all of them for "all", or the only one there is; else UsageError."""
    if given == ALL and known:
        return known
    if given is not None and given in known:
        return [given]
    if given is None and len(known) == 1:
        return known
    names = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    problem = f"has several {what}s" if given is None else f"has no {what} {given!r}; it has"
    raise UsageError(f"{where} {problem}: {names}; choose one with --{what}, or {ALL}")
