"""`curator ingest`: data into the store, with progress."""

import contextlib
import json
import sys
import time
from typing import Any

import click

from curator.cli.options import field_options, json_option, model_options, store_option
from curator.cli.printable import printable

__all__ = ["ingest"]

_SECONDS_BETWEEN_LINES = 10.0


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--dataset", required=True, metavar="NAME", help="The dataset that the rows belong to.")
@store_option
@model_options
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the hub.")
@field_options
@click.option("--label-field", metavar="COLUMN", help="The label's column. All other columns become metadata.")
@click.option(
    "--positions",
    type=click.Choice(["response", "all"]),
    help="Which tokens count: the response where there is one, or all. [default: response]",
)
@click.option(
    "--max-length", type=int, metavar="N", help="Tokens a sample may have. [default: the model's, at most 2048]"
)
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "reject"]),
    default="truncate",
    show_default=True,
    help="Longer samples: cut and marked, or quarantined.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="[default: the checkpoint's]"
)
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    help="Weights in fewer bits (torchao); the unembedding stays whole. [default: none]",
)
@click.option(
    "--chat-template",
    metavar="FILE",
    help="A Jinja template for conversations, in the place of the model's own. [default: the model's]",
)
@click.option(
    "--batch-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Tokens in one forward pass."
)
@click.option(
    "--segment-tokens",
    type=click.IntRange(1),
    default=250_000,
    show_default=True,
    help="Tokens between two commits: what a kill can cost.",
)
@click.option("--split", metavar="NAME", help="Of a saved dataset or one of the hub; all for every one.")
@click.option("--config", metavar="NAME", help="Of a dataset of the hub that has several.")
@click.option("--format", type=click.Choice(["jsonl", "csv", "tsv"]), help="Of standard input, where DATA is -.")
@click.option("--allow-http", is_flag=True, help="Fetch DATA that are http:// or https:// addresses.")
@click.option("--reread", is_flag=True, help="Read what has not changed since the last ingest, too.")
@click.option("--watch", is_flag=True, help="Keep reading what is new, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two rounds of --watch.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the calibration, when the space is new.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def ingest(
    data: tuple[str, ...],
    store: str,
    device: str,
    quiet: bool,
    as_json: bool,
    watch: bool,
    interval: float,
    **options: Any,
) -> int:
    """Add the rows of DATA that the store does not have yet.

    DATA are files (.jsonl, .csv, .tsv, also with .gz or .zst; .parquet, .arrow), directories of them or of
    datasets.save_to_disk, quoted globs ("data/**/*.parquet"), - for standard input, URLs that fsspec opens
    (s3://bucket/train/), and datasets of the hub: hf://datasets/NAME, or hf://datasets/NAME@REVISION.

    Each new row passes the model once. Files that have not changed are not read again, and of a text that was
    appended to only what is new. With --id-field, a row of a known id whose text has changed replaces its older
    version in answers, with its tags and notes; curator undo takes that back. Without ids a changed row is a new
    sample beside the old one.

    Rows that cannot be used go to quarantine with the reason, and the exit code is then 3. Ctrl-C is safe: the same
    command continues. A watch that is stopped while it waits ends with 0.

    \b
    curator ingest train.jsonl --model ./model --store store --dataset train
    curator ingest qa.parquet --prompt-field question --response-field answer --store store --dataset qa
    curator ingest chats.jsonl --model ./model --chat-template chatml.jinja --store store --dataset chats
    curator ingest hf://datasets/openai/gsm8k --config main --split train --store store --dataset gsm8k
    curator ingest logs/ --id-field id --watch --interval 30 --store store --dataset logs

    Where no column is named, the columns say what the rows are: conversations (messages, conversations), preference
    pairs (chosen, rejected), prompts (prompt and completion or response, instruction and output, question and answer)
    or text; --shape forces one. Of conversations the assistant's turns count. See first with: curator preview
    """
    from curator.service import Curator

    if watch:
        with Curator.open(store, device=device) as curator:
            return _watch(curator, data, quiet, as_json, interval=interval, **options)
    with Curator.open(store, device=device) as curator, _Reporter(quiet) as reporter:
        report = curator.ingest(data, on_progress=reporter, **options)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report)
    if report.is_interrupted:
        return _interrupted()
    if report.quarantined:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in report.reasons.items())
        click.echo(
            f"curator: {report.quarantined:,} rows in quarantine ({printable(reasons)}); "
            f"see: curator quarantined --store {store} --dataset {printable(report.dataset)}",
            err=True,
        )
        return 3
    return 0


def _interrupted() -> int:
    click.echo("curator: interrupted; what is committed is safe, the same command continues", err=True)
    return 130


def _watch(curator: Any, data: tuple[str, ...], quiet: bool, as_json: bool, **options: Any) -> int:
    """One line a round: on stdout as JSON, else on stderr."""
    with contextlib.suppress(KeyboardInterrupt):  # while it waits, nothing is cut short
        for report in curator.watch(data, **options):
            if as_json:
                click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
            elif not quiet:
                click.echo(f"{time.strftime('%H:%M:%S')} {_round(report)}", err=True)
            for error in report.broken.values():
                click.echo(f"curator: {printable(error)}; tried again when it changes", err=True)
            if report.is_interrupted:
                return _interrupted()
    return 0


def _round(report: Any) -> str:
    if report.is_locked:
        return "another process writes to the store; trying again"
    said = [f"{count:,} {name}" for name, count in _counts(report).items() if count]
    if not report.rows:
        return "nothing new"
    return f"{report.rows:,} rows read: {', '.join(said)}; {report.num_samples:,} samples in all"


def _counts(report: Any) -> dict[str, int]:
    return {
        "added": report.added,
        "replaced": report.replaced,
        "already present": report.present,
        "updated metadata": report.updated,
        "duplicates": report.duplicates,
        "deleted earlier": report.deleted,
        "quarantined": report.quarantined,
        "truncated": report.truncated,
    }


def _print(report: Any) -> None:
    forward = max(report.seconds - report.calibration_seconds, 1e-9)
    replaced = f"{report.replaced:,} replaced, " if report.replaced else ""
    click.echo(
        f"dataset {printable(report.dataset)}: {report.added:,} samples added, {replaced}{report.num_samples:,} in all"
    )
    others = {name: count for name, count in _counts(report).items() if name not in ("added", "replaced")}
    said = [f"{count:,} {name}" for name, count in others.items() if count]
    reading = f" as {printable(report.reading)}" if report.rows else ""
    click.echo(f"{report.rows:,} rows read{reading}" + (f": {', '.join(said)}" if said else ""))
    if report.unread:
        click.echo(f"{report.unread:,} rows not read again: their files have not changed there")
    if passed := report.added + report.replaced:
        click.echo(
            f"{report.tokens:,} tokens in {report.seconds:.1f} s ({passed / forward:,.1f} samples/s, "
            f"{report.tokens / forward:,.0f} tokens/s)"
            + (f", {report.calibration_seconds:.1f} s of it calibration" if report.is_new_space else "")
        )
    if report.space:
        click.echo(f"space {report.space[:12]}" + (" (new)" if report.is_new_space else ""))


class _Reporter:
    """Progress on stderr: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._first: Any = None  # the first news of a phase: rate and time left are those of a phase
        self._first_done = 0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "_Reporter":
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("reading", total=None, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Any) -> None:
        if progress.phase == "reading":
            if not self._quiet:
                click.echo(f"curator: reading as {printable(progress.reading)}", err=True)
            return
        now = time.monotonic()
        # Rows are read ahead of the model by up to a segment: what counts is what has passed the model or was known.
        done = progress.rows - max(0, progress.waiting)
        if self._first is None or progress.phase != self._first.phase:
            self._first, self._first_done, self._started = progress, done, now
        rate = self._rate(progress, now)
        if self._bar is not None:
            self._bar.update(
                self._task, description=progress.phase, completed=done, total=progress.total_rows, rate=rate[2:]
            )
        elif not self._quiet and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            click.echo(
                f"{progress.phase}: {done:,}{self._of(progress)} rows{rate}{self._eta(progress, done, now)}", err=True
            )

    def _rate(self, progress: Any, now: float) -> str:
        """Since the first news of the phase, whose own samples took a time that nobody has measured."""
        seconds, samples = now - self._started, progress.samples - self._first.samples
        if not seconds or not samples:
            return ""
        tokens = progress.tokens - self._first.tokens
        return f", {samples / seconds:,.1f} samples/s, {tokens / seconds:,.0f} tokens/s"

    @staticmethod
    def _of(progress: Any) -> str:
        return f" of {progress.total_rows:,}" if progress.total_rows else ""

    def _eta(self, progress: Any, done: int, now: float) -> str:
        since = done - self._first_done
        if not progress.total_rows or since <= 0:
            return ""
        left = (now - self._started) / since * max(0, progress.total_rows - done)
        return f", about {left:,.0f} s left"
