"""`curator refit`: a new projection for a space, with progress."""

import json
import time
from typing import Any

import click

from curator.cli.options import json_option, store_option
from curator.cli.printable import printable

__all__ = ["refit"]

_SECONDS_BETWEEN_LINES = 10.0


@click.command()
@store_option
@click.option("--space", metavar="FINGERPRINT", help="Its first characters. [default: the newest space]")
@click.option("--dry-run", is_flag=True, help="Only tell how much a new projection would capture.")
@click.option(
    "--force", is_flag=True, help="Take the new projection even where it captures no more, or less of a dataset."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw of samples to fit on.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def refit(store: str, quiet: bool, as_json: bool, **options: Any) -> int:
    """Fit a new projection for a corpus that has grown or drifted, from what is stored, without the model.

    `curator status` tells when it is worth it. The new projection replaces the old one only where it captures more of
    samples that were held out of the fit, and of no dataset less: that ends with exit code 1. Ids, keys, deletes and
    factors stay; sketches and the space's fingerprint are new. Queries go on meanwhile; Ctrl-C leaves the store as it
    was.
    """
    from curator.service import Curator

    reporter = _Reporter(quiet)
    try:
        with Curator.open(store, create=False) as curator:
            done = curator.refit(**options, on_progress=reporter)
    except KeyboardInterrupt:
        how = "the store is as it was, the same command starts anew"
        if reporter.phase == "indexing":
            how = "the projection is in place, the same command builds what its index lacks"
        click.echo(f"curator: interrupted; {how}", err=True)
        return 130
    if as_json:
        click.echo(json.dumps(done, ensure_ascii=False))
    else:
        _print(done, options["dry_run"])
    if options["dry_run"] or done["is_replaced"] or not done["is_better"]:
        return 0
    click.echo(
        f"curator: the new projection captures less of {_losing(done)}: space {done['space'][:12]} stays; "
        "--force replaces it all the same",
        err=True,
    )
    return 1


def _losing(done: dict[str, Any]) -> str:
    """The datasets that a new projection is worse for, with what they would lose."""
    return ", ".join(
        f"dataset {printable(row['dataset'])} ({row['before']:.1%} -> {row['after']:.1%})"
        for row in done["datasets"]
        if row["is_worse"]
    )


def _print(done: dict[str, Any], is_dry_run: bool) -> None:
    click.echo(f"captured energy of {done['held_out']} samples held out of the fit on {done['fitted_on']}:")
    for name, row in (("all", done["captured"]), *((row["dataset"], row) for row in done["datasets"])):
        click.echo(f"  {row['before']:.1%} -> {row['after']:.1%}  {printable(name)}")
    space = done["space"][:12]
    if done["is_replaced"]:
        click.echo(
            f"space {done['replaces'][:12]} became {space}: {done['samples']:,} samples, {done['segments']} segments, "
            f"{done['seconds']:.1f} s"
        )
    elif is_dry_run:
        losing = _losing(done)
        would = "replace it" if done["is_better"] and not losing else "not replace it"
        but = f": it captures less of {losing}" if done["is_better"] and losing else ""
        click.echo(f"space {space} stays in a dry run; a refit would {would}{but}")
    elif not done["is_better"]:
        click.echo(
            f"space {space} stays: the new projection captures no more. What is missing lies outside of what the store "
            "keeps, or of the sketch's width; --force replaces it all the same"
        )


class _Reporter:
    """Progress on stderr: a line every ten seconds."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._started = self._last = time.monotonic()
        self.phase = ""

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if progress.phase != self.phase:
            self.phase, self._started = progress.phase, now
        if self._quiet or now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        if progress.phase == "indexing":
            click.echo(f"indexing: {progress.total_samples:,} samples", err=True)
            return
        rate = progress.samples / max(now - self._started, 1e-9)
        left = f", about {(progress.total_samples - progress.samples) / rate:,.0f} s left" if rate else ""
        click.echo(
            f"{progress.phase}: {progress.samples:,} of {progress.total_samples:,} samples, "
            f"{rate:,.0f} samples/s{left}",
            err=True,
        )
