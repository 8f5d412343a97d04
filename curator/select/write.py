"""A selection on disk: the original columns with value and rank, streamed, whole or absent, with a manifest.

NAME.jsonl, NAME.parquet    one file, and NAME.jsonl.manifest.json beside it
any other name              a directory as the Hugging Face hub lays datasets out, for load_dataset("DIR"):
                            README.md, data/train-00000-of-0000N.parquet, manifest.json
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import CuratorError, UsageError
from curator.export import check_place, in_portions, replacing
from curator.image_files import ImageFiles
from curator.metadata.samples import rows_by_id
from curator.metadata.saved_queries import find_query
from curator.metadata.tables import Dataset, Sample, Segment, Space
from curator.select.selection import Selection
from curator.sources import Source, resolve
from curator.sources.image_values import restored
from curator.sources.images import read_image
from curator.types import INPUT_BREAK, Image
from index.stored import hash_file

__all__ = ["check_out", "write_selection"]

_PORTION = 1_000  # samples read from the database at once
_ROW_GROUP = 10_000
_IMAGE_ROW_GROUP = 100  # a row may hold megabytes
_FILE_ROWS = 500_000  # of one Parquet file in a directory
# The order of columns; the data's others follow.
_ROLES = ("id", "text", "prompt", "response", "messages", "tools", "label")
Manifest = Callable[[list[dict[str, Any]]], str]  # of the files that were written


def write_selection(
    session: Session,
    space: Space,
    selection: Selection,
    out: Path,
    images: ImageFiles,
    *,
    files: Iterable[str | Path],
    saved: Mapping[str, float],
    command: str | None,
) -> None:
    """Writes the samples in order of rank, and the manifest last.

    `files` and `saved`: what the query was read from, and the saved queries it is made of, with their factors. Ids and
    labels come back as text. Where the data has a column `value` or `rank`, ours are `curator_value` and
    `curator_rank`. Images are where they were: paths as paths, bytes as bytes, in JSON lines as data URIs. Raises as
    `check_out` does, and CuratorError where nothing can be written.
    """
    check_out(out)
    rows = _Rows(session, selection, images, as_text=out.suffix == ".jsonl")
    made = _made(session, space, selection, rows, command) | _inputs(session, files, saved)

    def manifest(written: list[dict[str, Any]]) -> str:
        return json.dumps({**made, "files": written}, indent=1, ensure_ascii=False) + "\n"

    if out.suffix:
        _write_file(rows, out, manifest)
        return
    try:
        _write_directory(rows, out, manifest, _card(selection))
    except OSError as error:
        raise CuratorError(f"{out} cannot be written: {error.strerror or error}") from error


def check_out(out: Path) -> None:
    """Raises UsageError or CuratorError where no selection can be written: asked before the work of selecting."""
    if out.suffix in (".jsonl", ".parquet"):
        check_place(out)
    elif out.suffix:
        raise UsageError(f"--out {out}: a file ends in .jsonl or .parquet; a name without an ending is a directory")
    elif out.exists():
        raise UsageError(f"--out {out} exists; give the directory another name, or remove it")


class _Rows:
    """The selected samples with the columns of their source, read again from the database for every iteration."""

    def __init__(self, session: Session, selection: Selection, images: ImageFiles, *, as_text: bool):
        self._session, self._selection, self._images, self._as_text = session, selection, images, as_text
        self.has_images = False  # known once the rows were read for the first time
        known = session.execute(sa.select(Dataset.name, Dataset.fields))
        self._fields = {name: fields or {} for name, fields in known}
        names = {name for row, _ in self._columns() for name in row}
        is_taken = bool(names & {"value", "rank"})
        self.value, self.rank = ("curator_value", "curator_rank") if is_taken else ("value", "rank")

    def __len__(self) -> int:
        return len(self._selection.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        values = self._selection.values.tolist()
        for rank, (row, value) in enumerate(zip(self._columns(), values, strict=True), start=1):
            yield {**self._restored(*row, self._read), self.value: value, self.rank: rank}

    def typed(self) -> Iterator[dict[str, Any]]:
        """The same, but with no bytes in the place of an image's: enough to tell the columns' types."""
        for row in self._columns():
            yield {**self._restored(*row, lambda _sha256: b""), self.value: 0.0, self.rank: 0}

    def _restored(self, columns: dict[str, Any], has_images: bool, read: Callable[[str], bytes]) -> dict[str, Any]:
        if not has_images:
            return columns
        return {name: restored(value, read, as_text=self._as_text) for name, value in columns.items()}

    def _read(self, sha256: str) -> bytes:
        return read_image(Image(sha256, path=str(self._images.path(sha256))))

    def _columns(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """The columns of each sample, and whether it has images."""
        for ids in in_portions(self._selection.ids.tolist(), _PORTION):
            found = rows_by_id(self._session, ids)
            for id_ in ids:
                yield self._of(*found[id_]), bool(found[id_][0].images)
            self._session.expunge_all()

    def _of(self, sample: Sample, dataset: str) -> dict[str, Any]:
        fields = self._fields[dataset]
        self.has_images |= bool(sample.images)
        parts: dict[str, Any] = {
            "text": sample.text if sample.messages is None else None,
            "prompt": sample.prompt,
            "response": sample.response,
            "messages": sample.messages,
            "tools": sample.tools,
            "id": sample.key if sample.has_own_key else None,
            "label": sample.label,
        }
        if sample.messages is not None and {"prompt", "response"} <= fields.keys() and len(sample.messages) == 2:
            parts["messages"] = None  # two columns, which were read as turns
            parts["prompt"], parts["response"] = (turn["content"] for turn in sample.messages)
        given = sample.meta.get(fields["input"]) if "input" in fields else None
        if given and parts["prompt"]:
            parts["prompt"] = parts["prompt"].removesuffix(INPUT_BREAK + given)
        named = {fields.get(role) or role: parts[role] for role in _ROLES if parts[role] is not None}
        return named | sample.meta


def _write_file(rows: _Rows, out: Path, manifest_of: Manifest) -> None:
    """The former manifest goes before the data it describes: a kill in between leaves data without one."""
    manifest = out.with_name(f"{out.name}.manifest.json")
    with replacing(manifest) as beside_manifest, replacing(out) as beside:  # the inner one takes its place first
        if out.suffix == ".jsonl":
            with beside.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            _write_parquet(rows, [beside], len(rows))
        beside_manifest.write_text(manifest_of([_described(beside, out.name)]), encoding="utf-8")
        manifest.unlink(missing_ok=True)


def _write_directory(rows: _Rows, out: Path, manifest_of: Manifest, card: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    number = max(1, -(-len(rows) // _FILE_ROWS))
    names = [f"data/train-{i:05d}-of-{number:05d}.parquet" for i in range(number)]
    try:
        (temporary / "data").mkdir(parents=True)
        _write_parquet(rows, [temporary / name for name in names], _FILE_ROWS)
        files = [_described(temporary / name, name) for name in names]
        (temporary / "manifest.json").write_text(manifest_of(files), encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _described(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "sha256": hash_file(path), "num_bytes": path.stat().st_size}


def _read_from(source: Source) -> dict[str, Any]:
    return _described(Path(source.location), source.location) if source.is_local else {"name": source.location}


def _write_parquet(rows: _Rows, paths: list[Path], rows_each: int) -> None:
    """Two passes: the first finds a type for each column, the second writes."""
    import pyarrow as pa  # deferred: 0.1 s that JSON lines need not pay
    import pyarrow.parquet as pq

    schema = _schema(rows)
    as_json = {field.name for field in schema if field.metadata == {b"stored": b"json"}}
    size = _IMAGE_ROW_GROUP if rows.has_images else _ROW_GROUP
    groups = in_portions(rows, size)
    for path in paths:
        with pq.ParquetWriter(path, schema) as writer:
            for _ in range(-(-rows_each // size)):
                group = next(groups, None)
                if group is None:
                    break
                writer.write_table(pa.Table.from_pylist([_fitted(row, as_json) for row in group], schema=schema))


def _fitted(row: dict[str, Any], as_json: set[str]) -> dict[str, Any]:
    if not as_json:
        return row
    return {name: json.dumps(value, ensure_ascii=False) if name in as_json else value for name, value in row.items()}


def _schema(rows: _Rows) -> Any:
    """One type for each column; a column whose rows agree on none is stored as JSON text."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for group in in_portions(rows.typed(), _ROW_GROUP):
        for name in dict.fromkeys(name for row in group for name in row):  # in the order of the data
            values = [row.get(name) for row in group]
            try:
                found = pa.array(values).type
                known = types.get(name, found)
                one = pa.unify_schemas(
                    [pa.schema([("c", known)]), pa.schema([("c", found)])], promote_options="permissive"
                )
                types[name] = one.field("c").type
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
                types[name] = None
    return pa.schema(
        [
            pa.field(name, pa.string(), metadata={"stored": "json"}) if kind is None else pa.field(name, kind)
            for name, kind in types.items()
        ]
    )


def _made(session: Session, space: Space, selection: Selection, rows: _Rows, command: str | None) -> dict[str, Any]:
    """How it was made, so that it can be made again: what was asked, in which space, of which segments."""
    segments = session.scalars(sa.select(Segment).where(Segment.space_id == space.id).order_by(Segment.id))
    return {
        "format": "forvalue-selection/1",
        "made_by": f"forvalue-curator {version('forvalue-curator')}",
        "created_at": datetime.now(UTC).isoformat(),
        "command": command,
        "space": space.fingerprint,
        "model": space.model,
        "revision": space.revision,
        **{name: value for name, value in selection.to_dict().items() if name not in ("out", "histogram")},
        "columns": {"value": rows.value, "rank": rows.rank},
        "segments": [{"name": segment.name, "files": segment.files} for segment in segments],
    }


def _inputs(session: Session, files: Iterable[str | Path], saved: Mapping[str, float]) -> dict[str, Any]:
    """What the query was made of, by hash: a file can be written anew, and a saved query replaced."""
    paths = list(files)
    return {
        "query_files": [_read_from(source) for source in resolve(paths)] if paths else [],
        "saved_queries": [
            {
                "name": row.name,
                "factor": factor,
                "query": row.description,
                "created_at": row.created_at.isoformat(),
                "sha256": sha256(json.dumps(row.parts, sort_keys=True).encode()).hexdigest(),  # of its samples
            }
            for row, factor in ((find_query(session, name), factor) for name, factor in saved.items())
        ],
    }


def _card(selection: Selection) -> str:
    taken, of = selection.counts["taken"], selection.counts["of"]
    head = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n"
    return (
        f"---\n{head}---\n\n"
        f"{taken['samples']:,} of {of['samples']:,} samples, selected by their value for a query: see manifest.json.\n"
    )
