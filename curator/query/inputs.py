"""What a query is made of: a text, a prompt and response, or the rows of files; one query, or one per row or group."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curator.errors import NotFoundError, UsageError
from curator.query.expression import parse_expression
from curator.sources import (
    SIDES,
    Source,
    check_fields,
    describe,
    is_named,
    read_rows,
    resolve,
    settle_fields,
    to_samples,
)
from curator.sources.images import ImageError, open_image
from curator.types import BadRow, Fields, Image, Row, Sample

__all__ = ["Query", "QueryInput", "read_queries"]


@dataclass(frozen=True)
class QueryInput:
    """What the caller gave. Exactly one of `text`, `prompt` with `response`, `data`, `saved`, or `expr`."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    data: Sequence[str | Path] = ()
    fields: Fields = field(default_factory=Fields)
    each: bool = False  # one query per row
    by: str | None = None  # one query per value of this column
    saved: str | None = None  # the name of a saved query
    expr: str | None = None  # an expression over saved queries
    images: Sequence[str | Path] = ()  # image files of the text, or of the prompt


@dataclass
class Query:
    """What is valued against: the mean of samples, less that of `minus`; or saved queries with their factors."""

    description: dict[str, Any]
    samples: list[Sample]
    minus: list[Sample] = field(default_factory=list)  # the rejected ones of preference pairs
    reading: str | None = None  # what its rows were recognised as, where the caller did not say
    skipped: list[BadRow] = field(default_factory=list)
    saved: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells one query of several from the others: its group, or its row's key or number."""
        described = self.description
        return str(described.get("group", described.get("key", described.get("row", ""))))

    def terms(self) -> Iterator[tuple[float, list[Sample]]]:
        """The means that it is the weighted sum of, where it is not made of saved queries."""
        if self.samples or not self.minus:
            yield 1.0, self.samples
        if self.minus:
            yield -1.0, self.minus

    def add(self, samples: Sequence[Sample]) -> None:
        """Takes the samples of a row in; the rejected one of a preference pair on the other side."""
        for sample in samples:
            is_rejected = sample.pair is not None and sample.pair[1] == SIDES[1]
            (self.minus if is_rejected else self.samples).append(sample)


def read_queries(given: QueryInput, known: Callable[[], Sequence[Fields]] = tuple) -> Iterator[Query]:
    """The queries of an input, in order. Raises UsageError for a combination that makes none.

    `known`: the columns of the corpus's datasets; they are those of `data` too where the caller names none and they are
    there. Preference pairs are one query: the mean of what was chosen less that of what was rejected.
    """
    has_prompt = given.prompt is not None or given.response is not None
    kinds = [given.text is not None, has_prompt, bool(given.data), given.saved is not None, given.expr is not None]
    if sum(kinds) != 1:
        raise UsageError(
            "a query is one of: --text T, --prompt P with --response R, --data FILE, --saved NAME, or --expr E"
        )
    if given.each and given.by:
        raise UsageError("--each and --by exclude each other: one answer a row, or one a group")
    if (given.each or given.by) and not given.data:
        raise UsageError("--each and --by need --data")
    if given.images and given.text is None and not has_prompt:
        raise UsageError("--image belongs to --text, or to --prompt with --response; of --data use --image-field")
    if given.data:
        return _from_data(given, known)
    if given.saved is not None:
        return iter([Query({"saved": given.saved}, [], saved={given.saved: 1.0})])
    if given.expr is not None:
        return iter([Query({"expr": given.expr}, [], saved=parse_expression(given.expr))])
    return iter([_from_text(given)])


def _images(given: QueryInput) -> tuple[Image, ...]:
    """The image files that a query names. Raises NotFoundError, and UsageError for what is no image."""
    images = []
    for name in given.images:
        path = Path(name).expanduser()
        try:
            image = Image.of(path.read_bytes())
            open_image(image.data or b"")
        except OSError as error:
            raise NotFoundError(f"--image {name} cannot be read: {error.strerror}") from error
        except ImageError as error:
            raise UsageError(f"--image {name}: {error}") from error
        images.append(image)
    return tuple(images)


def _from_text(given: QueryInput) -> Query:
    images = _images(given)
    shown = {"images": [str(name) for name in given.images]} if images else {}
    if given.text is not None:
        if not given.text.strip():
            raise UsageError("--text is empty")
        return Query({"text": given.text} | shown, [Sample(text=given.text, images=images)])
    if given.response is None or not given.response.strip():
        raise UsageError("--prompt needs a --response that is not empty: what should the model answer?")
    prompt = given.prompt or ""
    sample = Sample(prompt=prompt, response=given.response, images=images)
    return Query({"prompt": prompt, "response": given.response} | shown, [sample])


def _from_data(given: QueryInput, known: Callable[[], Sequence[Fields]]) -> Iterator[Query]:
    sources = resolve(given.data)
    fields = settle_fields(sources, given.fields, known())
    is_plain = is_named(given.fields) or fields == check_fields(Fields(id=fields.id))  # nobody needs to be told
    reading = None if is_plain else f"reading as {describe(fields)}"
    names = [str(item) for item in given.data]
    if given.each:
        yield from _one_per_row(sources, fields, reading)
        return
    groups: dict[str, Query] = defaultdict(lambda: Query({}, [], reading=reading))
    skipped = []
    for row in _rows(sources, fields):
        group = _group(row, given.by) if isinstance(row, Row) else row
        found = to_samples(row, fields) if isinstance(row, Row) and isinstance(group, str) else group
        if isinstance(found, list):
            groups[str(group)].add(found)
        elif isinstance(found, BadRow):
            skipped.append(found)
    if not groups:
        raise UsageError(f"no usable row in {', '.join(names)}: {skipped[0].reason if skipped else 'it has no rows'}")
    for name, query in groups.items():
        query.description = {"data": names} | ({} if given.by is None else {"by": given.by, "group": name})
        query.skipped = skipped
        yield query


def _one_per_row(sources: list[Source], fields: Fields, reading: str | None) -> Iterator[Query]:
    skipped: list[BadRow] = []  # before the first usable row; later ones are told with the row before them
    query: Query | None = None
    for row in _rows(sources, fields):
        found = to_samples(row, fields) if isinstance(row, Row) else row
        if isinstance(found, BadRow):
            (query.skipped if query else skipped).append(found)
            continue
        if query is not None:
            yield query
        first = found[0]
        description: dict[str, Any] = {"data": [first.source], "row": first.row}
        if first.key is not None:
            description["key"] = first.key if first.pair is None else first.pair[0]
        query = Query(description, [], reading=reading, skipped=[] if query else skipped)
        query.add(found)
    if query is not None:
        yield query
    else:
        raise UsageError(f"no usable row in {sources[0]}: {skipped[0].reason if skipped else 'it has no rows'}")


def _rows(sources: list[Source], fields: Fields) -> Iterator[Row | BadRow]:
    for source in sources:
        yield from read_rows(source, fields.raw)


def _group(row: Row, by: str | None) -> str | BadRow:
    if by is None:
        return ""
    value = row.columns.get(by)
    if value is None or isinstance(value, list | dict):
        return BadRow(row.source, row.row, f'no usable value in field "{by}" to group by')
    return str(value)
