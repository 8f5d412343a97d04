"""`curator ingest`: data into the store, with progress."""

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
@click.option("--seed", type=int, default=0, show_default=True, help="Of the calibration, when the space is new.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def ingest(data: tuple[str, ...], store: str, device: str, quiet: bool, as_json: bool, **options: Any) -> int:
    """Add the rows of DATA that the store does not have yet.

    DATA are files (.jsonl, .csv, .tsv, .parquet; also .gz and .zst) or directories of them. Each new row passes the
    model once. Rows that cannot be used go to quarantine with the reason, and the exit code is then 3. Ctrl-C is safe:
    the same command continues.

    \b
    curator ingest train.jsonl --model ./model --store store --dataset train
    curator ingest qa.parquet --prompt-field question --response-field answer --store store --dataset qa
    curator ingest chats.jsonl --model ./model --chat-template chatml.jinja --store store --dataset chats

    Where no column is named, the columns say what the rows are: conversations (messages, conversations), preference
    pairs (chosen, rejected), prompts (prompt and completion or response, instruction and output, question and answer)
    or text; --shape forces one. Of conversations the assistant's turns count. See first with: curator preview
    """
    from curator.service import Curator

    with Curator.open(store, device=device) as curator, _Reporter(quiet) as reporter:
        report = curator.ingest(data, on_progress=reporter, **options)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report)
    if report.is_interrupted:
        click.echo("curator: interrupted; what is committed is safe, the same command continues", err=True)
        return 130
    if report.quarantined:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in report.reasons.items())
        click.echo(
            f"curator: {report.quarantined:,} rows in quarantine ({printable(reasons)}); "
            f"see: curator quarantined --store {store} --dataset {printable(report.dataset)}",
            err=True,
        )
        return 3
    return 0


def _print(report: Any) -> None:
    forward = max(report.seconds - report.calibration_seconds, 1e-9)
    click.echo(f"dataset {printable(report.dataset)}: {report.added:,} samples added, {report.num_samples:,} in all")
    others = {
        "already present": report.present,
        "updated metadata": report.updated,
        "duplicates": report.duplicates,
        "deleted earlier": report.deleted,
        "quarantined": report.quarantined,
        "truncated": report.truncated,
    }
    said = [f"{count:,} {name}" for name, count in others.items() if count]
    click.echo(f"{report.rows:,} rows read as {printable(report.reading)}" + (f": {', '.join(said)}" if said else ""))
    if report.added:
        click.echo(
            f"{report.tokens:,} tokens in {report.seconds:.1f} s ({report.added / forward:,.1f} samples/s, "
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
        self._phase = ""
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
        if progress.phase != self._phase:  # rate and time left are those of a phase: calibration comes first
            self._phase, self._started = progress.phase, now
        rate = self._rate(progress, now)
        # Rows are read ahead of the model by up to a segment: what counts is what has passed the model or was known.
        waiting = max(0, progress.waiting)
        done = progress.rows - waiting
        if self._bar is not None:
            self._bar.update(
                self._task, description=progress.phase, completed=done, total=progress.total_rows, rate=rate
            )
        elif not self._quiet and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            click.echo(
                f"{progress.phase}: {done:,}{self._of(progress)} rows, {rate}{self._eta(progress, done, now)}", err=True
            )

    def _rate(self, progress: Any, now: float) -> str:
        seconds = max(now - self._started, 1e-9)
        return f"{progress.samples / seconds:,.1f} samples/s, {progress.tokens / seconds:,.0f} tokens/s"

    @staticmethod
    def _of(progress: Any) -> str:
        return f" of {progress.total_rows:,}" if progress.total_rows else ""

    def _eta(self, progress: Any, done: int, now: float) -> str:
        if not progress.total_rows or not done:
            return ""
        left = (now - self._started) / done * max(0, progress.total_rows - done)
        return f", about {left:,.0f} s left"
