"""Which sources data stand for: paths, directories, globs, URLs and standard input become a list of readable files."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from curator.errors import NotFoundError, UsageError
from curator.sources.formats import SUFFIXES, data_format
from curator.sources.saved_dataset import saved_files
from curator.sources.source import Source, SourceOptions, local_source
from curator.sources.stdin import stdin_source

__all__ = ["resolve"]

_STDIN = "-"
_DEFAULTS = SourceOptions()


def resolve(
    data: str | Path | Sequence[str | Path], options: SourceOptions = _DEFAULTS, *, allow_empty: bool = False
) -> list[Source]:
    """The sources that `data` names, each file once, under absolute paths or URLs.

    What is named keeps its order. A directory stands for its readable files at any depth, sorted by name, without
    hidden files and files of other suffixes; one that `datasets.save_to_disk` wrote, for the files of the chosen split.
    A glob (data/*.jsonl, **/*.parquet) stands for what it matches, sorted. - is standard input.

    Raises NotFoundError for a path that does not exist and a glob that matches nothing, and UsageError for a named
    file of an unknown suffix, a directory without data files (unless `allow_empty`), and no path at all.
    """
    # A str is a sequence of str too: without this, "train.jsonl" would be looked up letter by letter.
    given = [data] if isinstance(data, str | Path) else list(data)
    if not given:
        raise UsageError(f"no data given: name at least one file or directory ({SUFFIXES})")
    found: dict[str, Source] = {}
    for item in given:
        for key, source in _sources_of(item, options, allow_empty):
            # Two names of one file (a link, a/../a) are one file; the first name is kept.
            found.setdefault(key, source)
    return list(found.values())


def _sources_of(item: str | Path, options: SourceOptions, allow_empty: bool) -> Iterator[tuple[str, Source]]:
    if item == _STDIN:
        source = stdin_source(options.format)
        yield source.location, source
        return
    if isinstance(item, str) and "://" in item:
        # fsspec takes .1 s to import, which files on this machine need not wait for.
        from curator.sources.remote import remote_sources

        for source in remote_sources(item, options):
            yield source.location, source
        return
    for path in _files(item, options, allow_empty):
        _check_file(path)
        yield os.path.realpath(path), local_source(path)


def _files(item: str | Path, options: SourceOptions, allow_empty: bool) -> list[Path]:
    path = Path(os.path.abspath(Path(item).expanduser()))
    if path.is_dir():
        files = list(_walk(path, options))
        if not files and not allow_empty:
            raise UsageError(f"{path} holds no data files: expected at least one of {SUFFIXES}")
        return files
    if glob.has_magic(str(item)) and not os.path.lexists(path):
        return _matched(path, options, allow_empty)
    return [path]


def _matched(pattern: Path, options: SourceOptions, allow_empty: bool) -> list[Path]:
    """What a glob matches: readable files, and those in directories; hidden ones and other suffixes are left out."""
    matched = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    if not matched and not allow_empty:
        raise NotFoundError(f"{pattern} matches nothing: check the pattern (** goes down any depth)")
    files: list[Path] = []
    for path in matched:
        if path.is_dir():
            # ** matches every directory itself: its files are matched too where the pattern goes on.
            files += [] if pattern.name == "**" else _walk(path, options)
        elif data_format(path) is not None:
            files.append(path)
    if matched and not files and not allow_empty:
        raise UsageError(f"{pattern} matches {len(matched)} paths and none is a data file: expected one of {SUFFIXES}")
    return files


def _check_file(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist: check the path")
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file: write the data to a file first")


def _walk(root: Path, options: SourceOptions) -> Iterator[Path]:
    """Readable files below `root`, by name."""
    return iter(sorted(_below(root, options), key=lambda file: file.relative_to(root).parts))


def _below(root: Path, options: SourceOptions) -> Iterator[Path]:
    # Linked directories are followed, each real directory once, so that a loop ends.
    visited = {os.path.realpath(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        saved = saved_files(Path(folder), options.split)
        if saved is not None:
            subfolders.clear()
            yield from saved
            continue
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
