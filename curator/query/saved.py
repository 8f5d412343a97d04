"""Saved queries: kept as each space sees them, so that asking again needs no model, also after new ingests."""

import contextlib
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from keyword import iskeyword
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from curator.errors import EmptyQueryError, IntegrityError, LockedError, UsageError
from curator.metadata.saved_queries import delete_query, find_query, query_named, representation_of, saved_queries
from curator.metadata.tables import SavedQuery, SavedRepresentation, SavedTop
from curator.query.inputs import Query
from curator.store import Store, keep_images
from curator.types import Image, Sample
from curator.value import QueryRepresentation
from index.stored import fsync_directory, hash_file

if TYPE_CHECKING:
    from curator.query.answer import Answering

__all__ = ["record_tops", "represent_saved", "sample_of", "save_query"]

HISTORY_ENDS = 10  # samples of each end that the history keeps


def save_query(answering: "Answering", name: str, query: Query, *, is_replaced: bool) -> SavedQuery:
    """Runs a query and keeps it under a name; the caller holds the write lock and commits.

    Raises UsageError for a name that is no identifier or is taken, and as a query does.
    """
    session = answering.session
    # An expression is parsed as Python's are: no word of its own, and every name in its NFKC form.
    is_name = name.isidentifier() and not iskeyword(name) and normalize("NFKC", name) == name
    if not is_name or len(name) > 200:
        raise UsageError(f"a saved query's name is letters, digits and _, as in an expression; got {name!r}")
    former = query_named(session, name)
    if former is not None and not is_replaced:
        raise UsageError(f"a query named {name!r} is saved already; choose another name, or --replace it")
    if query.saved:
        represented, description = represent_saved(answering, query.saved, is_whole=False)
        parts = [
            {"weight": factor * part["weight"], "samples": part["samples"]}
            for term, factor in query.saved.items()
            for part in find_query(session, term).parts
        ]
    else:
        represented, description = answering.represent(query)
        parts = [
            {"weight": factor, "samples": [_kept(answering, sample) for sample in samples]}
            for factor, samples in query.terms()
        ]
    if not represented.norm > 0:
        raise EmptyQueryError("the query has no usable gradient: the model predicts it perfectly, or gave NaN")
    if former is not None:
        delete_query(session, former)
    row = SavedQuery(
        name=name,
        description=query.description | description,
        parts=parts,
        num_samples=description["num_samples"],
        num_tokens=description["num_tokens"],
        created_at=datetime.now(UTC),
    )
    session.add(row)
    session.flush()
    _store(answering, row, represented)
    record_tops(answering, [row])
    return row


def represent_saved(
    answering: "Answering", terms: dict[str, float], *, is_whole: bool
) -> tuple[QueryRepresentation, dict[str, Any]]:
    """sum of factor * saved query, and the counts of their samples.

    Where the space has not seen one of them (a refit, another model), or its whole gradient is asked for, its samples
    are run through the model, once. Raises NotFoundError for a name that is not saved.
    """
    rows = {name: find_query(answering.session, name) for name in terms}
    parts = [(factor, _represented(answering, rows[name], is_whole)) for name, factor in terms.items()]
    combined = parts[0][1] if list(terms.values()) == [1.0] else QueryRepresentation.combine(parts)
    return combined, {
        "num_samples": sum(row.num_samples for row in rows.values()),
        "num_tokens": sum(row.num_tokens for row in rows.values()),
        "num_skipped": 0,
        "num_truncated": 0,
    }


def record_tops(answering: "Answering", queries: Iterable[SavedQuery] | None = None) -> None:
    """Adds both ends of the answers to saved queries (all that the space has seen) to their histories."""
    from curator.query.answer import QueryOptions  # answers need saved queries, and histories need answers

    session, space = answering.session, answering.space.fingerprint
    options = QueryOptions(top=HISTORY_ENDS, harmful=HISTORY_ENDS)
    for row in saved_queries(session) if queries is None else queries:
        if representation_of(session, row, space) is None:
            continue
        answer = answering.answer(Query({"saved": row.name}, [], saved={row.name: 1.0}), options)
        ends = (
            [{"id": item.id, "key": item.key, "value": item.value} for item in items]
            for items in (answer.helpful, answer.harmful)
        )
        helpful, harmful = ends
        session.add(
            SavedTop(
                query_id=row.id,
                space=space,
                num_samples=answer.how.num_samples,
                helpful=helpful,
                harmful=harmful,
                created_at=datetime.now(UTC),
            )
        )


def _represented(answering: "Answering", row: SavedQuery, is_whole: bool) -> QueryRepresentation:
    stored = representation_of(answering.session, row, answering.space.fingerprint)
    if stored is not None and not is_whole:
        path = answering.store.root / "queries" / stored.file
        try:
            is_sound = hash_file(path) == stored.sha256
        except OSError:
            is_sound = False
        if not is_sound:
            raise IntegrityError(
                f"the file of the saved query {row.name!r} is missing or damaged: {path}; save it again with --replace"
            )
        return QueryRepresentation.load(path).to(answering.projection.rotation.device)
    terms = []
    for part in row.parts:
        samples = [sample_of(answering.store, sample) for sample in part["samples"]]
        terms.append((part["weight"], answering.represent(Query({}, samples))[0]))
    represented = terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else QueryRepresentation.combine(terms)
    if stored is None:
        # Another process may be writing: then the next question runs the samples again.
        with contextlib.suppress(LockedError), answering.store.writing():
            answering.session.rollback()  # a new look: it may have come from elsewhere meanwhile
            if representation_of(answering.session, row, answering.space.fingerprint) is None:
                _store(answering, row, represented)
                answering.session.commit()
    return represented


def _store(answering: "Answering", row: SavedQuery, represented: QueryRepresentation) -> None:
    """Writes the file, which exists for the store once its row is committed."""
    folder = answering.store.root / "queries"
    folder.mkdir(exist_ok=True)
    file = replace(represented, gradient=None).save(folder / f"{secrets.token_hex(16)}.safetensors")
    fsync_directory(folder)
    answering.session.add(
        SavedRepresentation(
            query_id=row.id,
            space=answering.space.fingerprint,
            file=file.name,
            sha256=file.sha256,
            num_bytes=file.num_bytes,
            created_at=datetime.now(UTC),
        )
    )
    answering.session.flush()


def sample_of(store: Store, plain: dict[str, Any]) -> Sample:
    """A sample of a saved query, as it is kept with it."""
    images = tuple(Image(sha256) for sha256 in plain.get("images", ()))
    return store.images.located(Sample(**plain | {"images": images}))


def _kept(answering: "Answering", sample: Sample) -> dict[str, Any]:
    """The sample as it is kept with a query, its images in the store."""
    sample = answering.store.images.put(sample)
    keep_images(answering.store, answering.session, [sample])
    return _plain(sample)


def _plain(sample: Sample) -> dict[str, Any]:
    images = {"images": [image.sha256 for image in sample.images]} if sample.images else {}
    if sample.messages is not None:
        return {"messages": sample.messages} | ({"tools": sample.tools} if sample.tools else {}) | images
    if sample.text is not None:
        return {"text": sample.text} | images
    return {"prompt": sample.prompt, "response": sample.response} | images
