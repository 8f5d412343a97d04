"""The Python API: what the command line and every other face call.

Opening a store, status, delete and restore need no torch (2 s to import), so verbs that do import it when called.
"""

from __future__ import annotations  # the types of what is imported late

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from sqlalchemy.orm import Session

from curator.errors import EmptyQueryError, IntegrityError, LockedError, NotFoundError, UsageError
from curator.metadata.changes import changes_of
from curator.metadata.choice import Choice
from curator.metadata.deletes import delete_samples, restore_samples
from curator.metadata.samples import find_sample
from curator.metadata.saved_queries import (
    delete_query,
    find_query,
    history_of_tops,
    saved_queries,
    spaces_of_query,
    tops_of,
)
from curator.metadata.spaces import find_space, known_fields
from curator.metadata.summary import datasets_of, quarantined_rows, spaces_of
from curator.metadata.tables import Change, SavedQuery
from curator.metadata.tags import notes_of, set_note, tag_samples, tags_of, untag_samples
from curator.metadata.undo import undo
from curator.store import DATABASE_URL, Store
from curator.types import Fields, Shape

if TYPE_CHECKING:
    from curator.audit import AuditMethod, AuditResult
    from curator.compare import Comparison
    from curator.evaluate import Evaluation
    from curator.ingest import IngestReport, OnProgress, Watching
    from curator.models import OnLong, Positions
    from curator.preview import Preview
    from curator.query import Answering, Explanation, OneQuestion, OpenedSpace, Query, QueryInput, QueryResult, Question
    from curator.refit import OnRefit
    from curator.select import Selection
    from curator.value import Method

__all__ = ["Curator"]


class Curator:
    """A store of valued training samples.

        with Curator.open("store") as curator:
            curator.ingest("train.jsonl", model="HuggingFaceTB/SmolLM2-135M", dataset="train")
            print(curator.query(text="What is 2 + 2? 4").helpful[0].text)

    Open one per process and keep it: the model of the last query stays loaded. Errors are those of curator.errors.
    """

    def __init__(self, store: Store, *, device: str = "auto"):
        """Use `Curator.open`."""
        self._store = store
        self._device = device
        self.unanswered: list[str] = []  # queries of the last `each` or `by` that had nothing to value against
        self._opened: OpenedSpace | None = None

    @classmethod
    def open(
        cls, store: str | Path, *, create: bool = True, device: str = "auto", database_url: str | None = None
    ) -> Self:
        """Opens the store in a directory, made where there is none unless `create` is False.

        `database_url` (default: the environment's CURATOR_DATABASE_URL) keeps the metadata in another database than
        the store's own SQLite file. Raises NotFoundError, UsageError or CuratorError.
        """
        url = database_url or os.environ.get(DATABASE_URL)
        return cls(Store.create(store, database_url=url) if create else Store(store, database_url=url), device=device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the database, the mapped segments and the model."""
        self._opened = None
        self._store.close()

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._store.root

    def ingest(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        dataset: str,
        model: str | None = None,
        revision: str | None = None,
        adapter: str | None = None,
        text_field: str | None = None,
        prompt_field: str | None = None,
        response_field: str | None = None,
        messages_field: str | None = None,
        shape: Shape | None = None,
        id_field: str | None = None,
        label_field: str | None = None,
        positions: Positions | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
        chat_template: str | Path | None = None,
        on_long: OnLong = "truncate",
        batch_tokens: int = 8192,
        segment_tokens: int = 250_000,
        segment_samples: int = 4096,
        seed: int = 0,
        split: str | None = None,
        config: str | None = None,
        format: str | None = None,
        allow_http: bool = False,
        reread: bool = False,
        on_progress: OnProgress = lambda progress: None,
        watching: Watching | None = None,
    ) -> IngestReport:
        """Adds the rows that the dataset does not have yet; each passes the model once.

        `data`: files, directories (also of datasets.save_to_disk), globs, URLs that fsspec opens, datasets of the hub
        as hf://datasets/NAME, or "-" for standard input in a `format`: jsonl, csv or tsv. `split` and `config` choose
        where there are several; http(s) is opened only with `allow_http`. What was read before and has not changed is
        not read again, unless `reread`. A row of a known key (`id_field`) with another content takes the place of the
        old version.

        `adapter`: a PEFT adapter's directory or hub name, merged into the model; `model` may itself be an adapter.
        `model`, `adapter`, `positions`, `max_length`, `dtype` and `chat_template` (a file, in the place of the model's
        own) make the space; left out, they are those of the store's newest space (of that model). Where no field is
        named, the columns tell what the rows are, as the report says; `shape` (chat, prompt, text, preference) forces
        it. Bad rows go to quarantine and are counted in the report. Ctrl-C keeps what is committed; the same call
        continues. Raises UsageError when nothing in the data is usable, ModelError, NotFoundError, LockedError while
        another process writes.
        """
        from curator.ingest import IngestOptions, IngestReport, Watching, ingest
        from curator.models import read_template
        from curator.query import refresh_indexes
        from curator.sources import SourceOptions, resolve
        from curator.space import SpaceOptions

        watching = watching or Watching()
        sources = resolve(data, SourceOptions(split, config, format, allow_http), allow_empty=watching.is_round)
        if watching.is_round and not (sources := watching.due(sources)):
            return IngestReport(dataset)
        self._opened = None  # a second model would not fit beside the first
        report = ingest(
            self._store,
            sources,
            dataset=dataset,
            model=model,
            revision=revision,
            adapter=adapter,
            fields=Fields(text_field, prompt_field, response_field, id_field, label_field, messages_field, shape),
            options=IngestOptions(
                space=SpaceOptions(
                    positions, max_length, dtype, None if chat_template is None else read_template(chat_template)
                ),
                on_long=on_long,
                device=self._device,
                batch_tokens=batch_tokens,
                segment_samples=segment_samples,
                segment_tokens=segment_tokens,
                seed=seed,
                reread=reread,
            ),
            on_progress=on_progress,
            watching=watching,
        )
        watching.ended(sources, report.broken.keys())
        is_new = report.added + report.replaced > 0
        if not report.is_interrupted and (is_new or not watching.is_round):
            with self._store.session() as session:
                refresh_indexes(self._store, session, find_space(session, report.space))
            if is_new:
                self._record_tops(report.space)
        return report

    @staticmethod
    def preview(
        data: str | Path | Sequence[str | Path],
        *,
        model: str,
        revision: str | None = None,
        adapter: str | None = None,
        num: int = 3,
        text_field: str | None = None,
        prompt_field: str | None = None,
        response_field: str | None = None,
        messages_field: str | None = None,
        shape: Shape | None = None,
        id_field: str | None = None,
        label_field: str | None = None,
        positions: Positions = "response",
        max_length: int | None = None,
        on_long: OnLong = "truncate",
        chat_template: str | Path | None = None,
    ) -> Preview:
        """What an ingest would read of the data, and which tokens would count: the first `num` samples, and counts over
        the first 1,000 rows. Needs no store, and loads the tokenizer only. Raises as `ingest` does.
        """
        from curator.models import read_template
        from curator.preview import preview

        return preview(
            _several(data),
            Fields(text_field, prompt_field, response_field, id_field, label_field, messages_field, shape),
            model=model,
            revision=revision,
            adapter=adapter,
            num=num,
            positions=positions,
            max_length=max_length,
            on_long=on_long,
            chat_template=None if chat_template is None else read_template(chat_template),
        )

    def watch(
        self, data: str | Path | Sequence[str | Path], *, dataset: str, interval: float = 10.0, **options: Any
    ) -> Iterator[IngestReport]:
        """Ingests what is new in `data` every `interval` seconds, with a report a round, until it is closed.

        `options` are those of `ingest`. The model stays loaded. A last line without its end is left until its file has
        stood still for a round; a broken file is in the report once, and tried again when it changes. Raises in the
        first round as `ingest` does.
        """
        from curator.ingest import IngestReport, Watching

        if interval <= 0:
            raise UsageError(f"interval must be above 0 seconds, got {interval}")
        if "-" in _several(data):
            raise UsageError("standard input cannot be watched: it is read once")
        watching, is_first = Watching(is_round=True), True
        while True:
            try:
                report = self.ingest(data, dataset=dataset, watching=watching, **options)
            except LockedError:
                report = IngestReport(dataset, is_locked=True)
            except (UsageError, NotFoundError) as error:
                if is_first:
                    raise
                report = IngestReport(dataset, broken={str(data): str(error)})
            yield report
            if report.is_interrupted:
                return
            is_first = False
            time.sleep(interval)

    def _record_tops(self, space: str) -> None:
        """What the grown corpus answers to the saved queries that its space knows."""
        from curator.query import record_tops

        with self._store.session() as session:
            if not saved_queries(session):
                return
        # Where another process has begun to write, the history is told at the end of what it ingests.
        with self._asking(space, None) as answering, suppress(LockedError), self._store.writing():
            record_tops(answering)
            answering.session.commit()

    def queries(self, **question: Unpack[Question]) -> Iterator[QueryResult]:
        """Answers one query after another: one for all of `data`, one a row (`each`) or one a group (`by`).

        Arguments: see `curator.query.Question`. Raises UsageError for a question that is none, FilterError,
        NotFoundError without a store or space, SpaceError when the space's model has changed.
        """
        from curator.query import parts_of, read_queries

        given, asked, options = parts_of(question)
        self.unanswered.clear()
        found = read_queries(given, self._known_fields)
        with self._asking(asked.space, asked.model, asked.adapter) as answering:
            for query in found:
                try:
                    result = answering.answer(query, options)
                except EmptyQueryError as error:
                    self._leave_unanswered(query, given, error)
                    continue
                if asked.space is None and answering.num_elsewhere:
                    result.notes.append(
                        f"the store's other spaces hold {answering.num_elsewhere:,} samples that this answer does not "
                        "cover; curator status lists them, --space chooses"
                    )
                yield result

    def query(self, **question: Unpack[Question]) -> QueryResult:
        """The answer to one query: the arguments of `queries`, without `each` and `by`, which make several."""
        if question.get("each") or question.get("by"):
            raise UsageError("each and by make several answers: use Curator.queries")
        return next(iter(self.queries(**question)))

    def explain(self, sample: int | str, *, pairs: int = 20, **question: Unpack[Question]) -> Explanation:
        """Why a sample (its id or key) has its value for a query: parts by token on both sides, and by pair of tokens.

        From what is stored; with `exact`, the sample is run through the model. The query's samples always are. Of the
        question, what makes the query, its space, method, damping and `exact` count. Raises NotFoundError for no such
        sample, UsageError for a key that several datasets have.
        """
        from curator.query import explain, parts_of, read_queries

        given, asked, options = parts_of(question)
        if given.each or given.by:
            raise UsageError("one query is explained at a time: leave --each and --by out")
        query = next(read_queries(given, self._known_fields))
        with self._asking(asked.space, asked.model, asked.adapter) as answering:
            id_ = find_sample(answering.session, answering.space.id, sample)
            return explain(answering, id_, query, options, num_pairs=pairs)

    def select(
        self,
        *,
        ratio: float | None = None,
        count: int | None = None,
        budget_tokens: int | None = None,
        min_value: float | None = None,
        min_percentile: float | None = None,
        by: str | None = None,
        each: int | None = None,
        diverse: bool = False,
        seed: int = 0,
        out: str | Path | None = None,
        command: str | None = None,
        on_progress: Callable[[int], None] = lambda taken: None,
        **question: Unpack[OneQuestion],
    ) -> Selection:
        """The subset worth training on: the samples of highest value for a query, within all limits that are given.

        `ratio` of the samples that `where` admits, `count`, `budget_tokens`, `min_value`, `min_percentile`, at most
        `each` of every value of the field `by`; at least one of them. `diverse` takes the subset whose summed sketches
        best follow the query (index/matching.py), so that a copy is worth less than the first. `out` writes the samples
        with their original columns, value and rank: a .jsonl or .parquet file, or a directory for
        datasets.load_dataset, with a manifest. Raises UsageError, FilterError, and as `queries` does.
        """
        from curator.query import parts_of, read_queries
        from curator.select import Limits, check_out, select, write_selection

        limits = Limits(ratio, count, budget_tokens, min_value, min_percentile, each, by)
        if out is not None:
            check_out(Path(out))
        given, asked, options = parts_of({**question})
        query = next(read_queries(given, self._known_fields))
        with self._asking(asked.space, asked.model, asked.adapter) as answering:
            selection = select(
                answering, query, options, limits, is_diverse=diverse, seed=seed, on_progress=on_progress
            )
            if out is None:
                return selection
            session, space = answering.session, answering.space
            write_selection(session, space, selection, Path(out), files=given.data, saved=query.saved, command=command)
            return dataclasses.replace(selection, out=str(out))

    def evaluate(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        by: str = "label",
        label_field: str | None = None,
        wrong: str | None = None,
        where: str | None = None,
        methods: Sequence[Method] = ("raw", "cosine", "preconditioned"),
        damping: float = 10.0,
        space: str | None = None,
        model: str | None = None,
        adapter: str | None = None,
        text_field: str | None = None,
        prompt_field: str | None = None,
        response_field: str | None = None,
        messages_field: str | None = None,
        shape: Shape | None = None,
        id_field: str | None = None,
    ) -> Evaluation:
        """How well each method's values find a class's own samples, and those of them that match the filter `wrong`.

        Each value of the data's column `label_field` (default: `by`) is one query, for the samples whose field `by` it
        is: label, dataset, or a column of the corpus. At the sketch tier. Raises UsageError when data and corpus share
        no class, FilterError, and as `queries` does.
        """
        from curator.evaluate import evaluate
        from curator.query import QueryInput, read_queries

        fields = Fields(text_field, prompt_field, response_field, id_field, None, messages_field, shape)
        given = QueryInput(data=_several(data), fields=fields, by=label_field or by)
        queries = list(read_queries(given, self._known_fields))
        with self._asking(space, model, adapter) as answering:
            return evaluate(answering, queries, by=by, wrong=wrong, where=where, methods=methods, damping=damping)

    def values(self, **question: Unpack[Question]) -> Iterator[dict[str, Any]]:
        """{"id", "key", "value"} of every sample for one query, streamed in order of ids, at the sketch tier.

        Arguments as for `queries`; those that shape a ranking (top, harmful, rerank, exact, tokens) change nothing.
        With `each` or `by`, one query after another, each row with "query" first: the group, or the key or row number.
        """
        from curator.query import parts_of, read_queries, value_rows

        given, asked, options = parts_of(question)
        self.unanswered.clear()
        found = read_queries(given, self._known_fields)
        with self._asking(asked.space, asked.model, asked.adapter) as answering:
            for query in found:
                name = {"query": query.name} if given.each or given.by else {}
                try:
                    for row in value_rows(answering, query, options):
                        yield name | row
                except EmptyQueryError as error:
                    self._leave_unanswered(query, given, error)

    def _leave_unanswered(self, query: Query, given: QueryInput, error: EmptyQueryError) -> None:
        """One of several queries has nothing to value against: the others go on."""
        if not (given.each or given.by):
            raise error
        self.unanswered.append(f"query {query.name}: {error}")

    def write_values(self, out: str | Path, **question: Unpack[Question]) -> int:
        """Writes `values` to a .jsonl or .parquet file, which appears whole or not at all; returns the rows."""
        from curator.export import write_values

        return write_values(Path(out), self.values(**question))

    def save_query(self, name: str, *, replace: bool = False, **question: Unpack[Question]) -> dict[str, Any]:
        """Keeps a query under a name: asked again (saved=name, expr="name - 0.5 * other"), it needs no model.

        Of the question, what makes the query and its space counts; the rest is given anew with each answer. Returns it
        as `saved_queries` lists it. Raises UsageError for a name that is no identifier, or taken without `replace`.
        """
        from curator.query import parts_of, read_queries, save_query

        given, asked, _ = parts_of(question)
        if given.each or given.by:
            raise UsageError("a saved query is one query: leave --each and --by out")
        query = next(read_queries(given, self._known_fields))
        with self._asking(asked.space, asked.model, asked.adapter) as answering, self._store.writing():
            row = save_query(answering, name, query, is_replaced=replace)
            answering.session.commit()
            return {**_described(row), "spaces": [answering.space.fingerprint]}

    def saved_queries(self) -> list[dict[str, Any]]:
        """The saved queries by name: name, query (its description), num_samples, num_tokens, created_at, spaces."""
        with self._store.session() as session:
            return [{**_described(row), "spaces": spaces_of_query(session, row)} for row in saved_queries(session)]

    def query_history(self, name: str) -> list[dict[str, Any]]:
        """Both ends of a saved query's answer (raw, reranked) when it was saved and after each ingest, oldest first.

        Each with "created_at", "space", "num_samples", "helpful", "harmful" and, from the second of a space on,
        "entered" and "left": {"helpful": keys, "harmful": keys}. Raises NotFoundError.
        """
        with self._store.session() as session:
            return history_of_tops(tops_of(session, find_query(session, name)))

    def delete_query(self, name: str) -> None:
        """Forgets a saved query with its history. Raises NotFoundError."""
        self._change(lambda session: delete_query(session, find_query(session, name)))

    def audit_mislabeled(
        self,
        reference: str | Path | Sequence[str | Path] = (),
        *,
        by: str | None = None,
        method: AuditMethod = "preconditioned-cosine",
        damping: float = 10.0,
        where: str | None = None,
        limit: int = 50,
        text_field: str | None = None,
        prompt_field: str | None = None,
        response_field: str | None = None,
        messages_field: str | None = None,
        shape: Shape | None = None,
        label_field: str | None = None,
        space: str | None = None,
        model: str | None = None,
        adapter: str | None = None,
    ) -> AuditResult:
        """The samples that their own group bears out least, worst first, with percentile in the group and the reason.

        A group is a label, or a value of the metadata field `by`. `reference`: files of clean rows, with the columns
        of text and label (or `by`) named as for ingest; each group is held against the mean of its clean rows. Without
        one, each sample against the rest of its group, and no model is loaded. Raises UsageError where nothing can be
        grouped or compared, and as `queries` does.
        """
        from curator.audit import MislabeledOptions, mislabeled

        options = MislabeledOptions(by, method, damping, where, limit)
        fields = Fields(text_field, prompt_field, response_field, None, label_field, messages_field, shape)
        with self._asking(space, model, adapter) as answering:
            return mislabeled(answering, _several(reference), fields, options)

    def audit_duplicates(
        self,
        *,
        threshold: float | None = None,
        exact: bool = False,
        where: str | None = None,
        limit: int = 50,
        space: str | None = None,
    ) -> AuditResult:
        """The samples that an earlier one makes superfluous: of the same text, or with a cosine of the sketches of at
        least `threshold`, unless only `exact` ones are looked for. Each names its keeper, which is no finding itself.
        """
        from curator.audit import duplicates

        with self._asking(space, None) as answering:
            return duplicates(answering, threshold=threshold, is_exact_only=exact, where=where, limit=limit)

    def audit_outliers(
        self,
        *,
        deviation: float | None = None,
        where: str | None = None,
        limit: int = 50,
        space: str | None = None,
    ) -> AuditResult:
        """The samples whose captured energy, norm or loss lies `deviation` (3.5) or more robust standard deviations
        from their dataset's median, farthest first."""
        from curator.audit import outliers

        with self._asking(space, None) as answering:
            return outliers(answering, deviation=deviation, where=where, limit=limit)

    def delete(self, where: str | None = None, *, ids: Sequence[int | str] | None = None) -> int:
        """Deletes the samples that match a filter, or these ids or keys of the newest space; returns how many.

        No answer returns them from now on. `undo` takes it back.
        """
        choice = Choice.of(where, ids)
        return self._change(lambda session: delete_samples(session, choice.chosen(session), choice.detail))

    def restore(self, where: str) -> dict[str, int]:
        """Takes deletes back: {"restored", "to_ingest_again" (compacted ones), "key_taken" (these stay deleted)}."""
        choice = Choice.of(where)
        return self._change(lambda session: restore_samples(session, choice.chosen(session), choice.detail))

    def tag(self, name: str, *, ids: Sequence[int | str] | None = None, **question: Unpack[Question]) -> dict[str, Any]:
        """Gives samples a tag: those that match `where`, or `ids` (or keys), or the ends of a query's answer.

        A query is asked as in `queries`; its `top` most helpful and `harmful` most harmful samples are meant, 0 of each
        where nothing is said. Returns {"change", "tag", "samples"}: how many did not bear it before, and the number to
        undo it with, None where nothing changed. Filters find it again: tag = "name". Raises UsageError, FilterError,
        NotFoundError.
        """
        return self._tagging(tag_samples, name, ids, question)

    def untag(
        self, name: str, *, ids: Sequence[int | str] | None = None, **question: Unpack[Question]
    ) -> dict[str, Any]:
        """Takes a tag from samples, chosen as for `tag`; returns the same. Raises NotFoundError for no such tag."""
        return self._tagging(untag_samples, name, ids, question)

    def _tagging(self, work: Any, name: str, ids: Sequence[int | str] | None, question: Question) -> dict[str, Any]:
        from curator.query import is_asking

        if is_asking(question):
            if ids is not None:
                raise UsageError("ids and a query exclude each other")
            choice = self._ends(question)
        else:
            choice = Choice.of(question.get("where"), ids)
        change: Change | None = self._change(lambda session: work(session, name, choice.chosen(session), choice.detail))
        return {"change": change and change.id, "tag": name, "samples": change.num_samples if change else 0}

    def _ends(self, question: Question) -> Choice:
        """The samples at the ends of the answers to a question."""
        ends: Question = {"top": 0, "harmful": 0, **question}
        if not ends["top"] and not ends["harmful"]:
            raise UsageError("how many samples of the query's answer? Give --top N, --harmful N or both")
        ids: set[int] = set()
        asked: list[dict[str, Any]] = []
        for result in self.queries(**ends):
            ids.update(item.id for item in (*result.helpful, *result.harmful))
            asked.append(result.query)
        options = {name: question[name] for name in ("top", "harmful", "where", "method") if question.get(name)}
        detail = {"query": asked[0] if len(asked) == 1 else f"{len(asked)} queries", **options}
        return Choice(None, sorted(ids), detail)

    def tags(self) -> list[dict[str, Any]]:
        """{"tag", "samples"} of every tag that a sample bears, by name."""
        with self._store.session() as session:
            return tags_of(session)

    def note(self, sample: int | str, text: str, *, space: str | None = None) -> dict[str, Any]:
        """Writes a note on a sample (its id or key), in the place of the one before; an empty text removes it.

        Returns {"change", "samples"}. Filters find it: note contains "x". Raises NotFoundError for no such sample.
        """

        def work(session: Session) -> Change | None:
            return set_note(session, find_sample(session, find_space(session, space).id, sample), text)

        change = self._change(work)
        return {"change": change and change.id, "samples": change.num_samples if change else 0}

    def notes(self, where: str = "note is not null") -> list[dict[str, Any]]:
        """{"id", "key", "dataset", "note"} of the samples that have a note and match a filter, by id."""
        with self._store.session() as session:
            return notes_of(session, Choice.of(where).chosen(session))

    def changes(self, limit: int | None = None) -> list[dict[str, Any]]:
        """What was done to samples, newest first: "change" (its number), "kind" (tag, untag, note, delete, restore),
        "tag", "samples", "detail" (how they were chosen), "created_at", "undone_at"."""
        with self._store.session() as session:
            return changes_of(session, limit)

    def undo(self, change: int | None = None) -> dict[str, Any]:
        """Takes the newest change back, or the one of this number: samples are then as they were before it.

        Returns it as `changes` lists it, with "done", how many samples are again what. What was compacted away since a
        delete is not restored, but "to_ingest_again". Raises NotFoundError for no such change, UsageError for one that
        is undone already, or whose samples a newer change of the same kind has changed.
        """
        return self._change(lambda session: undo(session, change))

    def compact(self) -> dict[str, Any]:
        """Rewrites segments without deleted samples and joins small ones; returns what that saved."""
        from curator.compact import compact

        self._release_segments()
        with self._store.writing(), self._store.session() as session:
            return compact(self._store, session)

    def refit(
        self,
        space: str | None = None,
        *,
        dry_run: bool = False,
        force: bool = False,
        seed: int = 0,
        on_progress: OnRefit = lambda progress: None,
    ) -> dict[str, Any]:
        """Fits a new projection of a space (the newest, or by its fingerprint) on what is stored, without the model.

        Returns {"captured": {"before", "after"} and "datasets": the same by dataset with "is_worse", all on samples
        held out of the fit, "is_better", "is_replaced", "space", "replaces": the old fingerprint, "samples",
        "segments", "fitted_on", "held_out", "seconds"}. The old projection stays unless the new one captures at least
        .01 more of the held-out samples' energy and for no dataset .02 less, or `force`. Ids, keys, norms, losses,
        factors and deletes stay; later ingests of the same model go on in the new space. At the end the space's index
        is built. Interrupted before that, the store is as it was and the same call starts anew; later, the new
        projection is in place and the same call builds what its index lacks. Raises NotFoundError, UsageError for a
        space too small, LockedError while another process writes.
        """
        from curator.query import refresh_indexes
        from curator.refit import RefitOptions, RefitProgress, refit
        from index.errors import StoredFileError

        options = RefitOptions(dry_run=dry_run, force=force, seed=seed)
        started = time.perf_counter()
        with nullcontext() if dry_run else self._store.writing(), self._store.session() as session:
            try:
                report = refit(self._store, session, find_space(session, space), options, on_progress)
            except StoredFileError as error:
                raise IntegrityError(f"{error}; run: curator verify") from error
            finally:
                self._release_segments()
        if not dry_run:
            on_progress(RefitProgress("indexing", 0, report["samples"]))
            with self._store.session() as session:
                refresh_indexes(self._store, session, find_space(session, report["space"]))
        return report | {"seconds": time.perf_counter() - started}

    def status(self) -> dict[str, Any]:
        """What the store holds: {"store", "spaces": [...], "datasets": [...]}."""
        with self._store.session() as session:
            return {"store": str(self.path), "spaces": spaces_of(session), "datasets": datasets_of(session)}

    def spaces(self) -> list[dict[str, Any]]:
        """Every space, newest last: "fingerprint", "model", "adapter", options, "samples", "bytes", "created_at"."""
        with self._store.session() as session:
            return spaces_of(session)

    def compare(self, spaces: Sequence[str], **question: Unpack[OneQuestion]) -> Comparison:
        """One query in two spaces, before and after, given by the beginnings of their fingerprints.

        Of the question, what makes the query, `where`, `method`, `damping`, `top`, `harmful`, `rerank` and `exact`
        count. Raises UsageError unless two different spaces are named that share samples, and as `queries` does.
        """
        from curator.compare import compare, rank
        from curator.query import parts_of, read_queries

        if len(spaces) != 2:
            raise UsageError(f"two spaces are compared, --space A --space B; got {len(spaces)} (see: curator spaces)")
        given, _, options = parts_of({**question})
        query = next(read_queries(given))
        rankings = []
        for name in spaces:
            with self._asking(name, None) as answering:
                rankings.append(rank(answering, query, options))
        if rankings[0].result.how.space == rankings[1].result.how.space:
            raise UsageError(f"{spaces[0]} and {spaces[1]} are the same space: name two (see: curator spaces)")
        return compare(*rankings, top=options.top, harmful=options.harmful)

    def quarantined(self, dataset: str | None = None) -> list[dict[str, Any]]:
        """The rows that could not become samples: dataset, source, row, reason, excerpt."""
        with self._store.session() as session:
            return quarantined_rows(session, dataset)

    def verify(self) -> dict[str, Any]:
        """Checks every file against its hash and every count; the store is sound when "problems" is empty."""
        from curator.verify import verify

        with self._store.session() as session:
            return verify(self._store, session)

    def _change(self, work: Any) -> Any:
        """Runs work on a session that is then committed. An open answer sees by itself what was deleted."""
        with self._store.writing(), self._store.session() as session:
            result = work(session)
            session.commit()
            return result

    def _known_fields(self) -> list[Fields]:
        """The columns of the store's datasets, the newest first."""
        with self._store.session() as session:
            return [fields for _, fields in known_fields(session)]

    def _asking(
        self, space: str | None, model: str | None, adapter: str | None = None
    ) -> AbstractContextManager[Answering]:
        from curator.query import OpenedSpace

        if self._opened is None:
            self._opened = OpenedSpace(self._store, self._device)
        return self._opened.asking(space, model, adapter)

    def _release_segments(self) -> None:
        """Before the files of the store are replaced: unmaps those that the last answer holds."""
        if self._opened is not None:
            self._opened.answering = None


def _described(row: SavedQuery) -> dict[str, Any]:
    return {
        "name": row.name,
        "query": row.description,
        "num_samples": row.num_samples,
        "num_tokens": row.num_tokens,
        "created_at": row.created_at.isoformat(),
    }


def _several(data: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [data] if isinstance(data, str | Path) else list(data)
