"""`curator spaces` and `curator compare`: the spaces of a store, and one query in two of them."""

import json
from datetime import UTC, datetime
from typing import Any

import click

from curator.cli.options import asked_options, device_option, json_option, method_options, store_option
from curator.cli.printable import printable

__all__ = ["compare", "spaces"]


@click.command()
@store_option
@json_option
def spaces(store: str, as_json: bool) -> None:
    """List the spaces: fingerprint, model, adapter, options, samples, bytes, age; the newest last.

    A query goes to the newest, or to the one that --space names by the first characters of its fingerprint.
    """
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.spaces()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for space in found:
        adapter = f" + {space['adapter']}" if space["adapter"] else ""
        click.echo(
            f"{space['fingerprint'][:12]}  {printable(space['model'] + adapter)}  {space['dtype']}, "
            f"{space['positions']}, max length {space['max_length']}  {space['samples']:,} samples, "
            f"{sum(space['bytes'].values()):,} bytes  {_age(space['created_at'])}"
        )
    if not found:
        click.echo("curator: no space yet; ingest something first: curator ingest DATA --model M", err=True)


@click.command()
@store_option
@click.option("--space", "spaces", multiple=True, metavar="FINGERPRINT", help="Twice: before, and after.")
@asked_options
@method_options
@click.option("--where", metavar="FILTER", help="""Only samples like: label = "x" and num_tokens < 200""")
@click.option("--top", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Samples at the top.")
@click.option("--harmful", type=click.IntRange(0, 10_000), default=10, show_default=True, help="And at the bottom.")
@device_option
@json_option
def compare(store: str, device: str, as_json: bool, spaces: tuple[str, ...], **question: Any) -> None:
    """Ask one query in two spaces: what fine-tuning, or another checkpoint, changed in its answer.

    Both spaces need the same data under the same --dataset. Values have no common scale between spaces; ranks do.

    \b
    curator ingest train.jsonl --model base --dataset train --store store
    curator ingest train.jsonl --model base --adapter lora --dataset train --store store
    curator spaces --store store
    curator compare --space 3f2a --space 9b01 --data validation.jsonl --store store
    """
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        found = curator.compare(spaces, **question)
    lacking = found.samples["only_before"] + found.samples["only_after"]
    if lacking:
        click.echo(
            f"curator: {found.samples['only_before']:,} samples are in the space before only, "
            f"{found.samples['only_after']:,} in the one after only; ingest the same data in both",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    before, after = (found.spaces[name][:12] for name in ("before", "after"))
    spearman = "" if found.spearman is None else f", Spearman {found.spearman:.3f}"
    click.echo(
        f"before {before}, after {after}: {found.samples['common']:,} common samples, "
        f"{found.overlap:.0%} of the top {question['top']} in both{spearman}"
    )
    for title in ("top", "bottom", "moved_up", "moved_down"):
        _show(title.replace("_", " "), getattr(found, title))


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    click.echo(f"\n{title:<40} {'before':>18} {'after':>18}  (rank, percentile)")
    for row in rows:
        cells = [
            f"{at['rank']:,} {at['percentile']:6.2f}" if at else "not there" for at in (row["before"], row["after"])
        ]
        click.echo(f"{printable(row['dataset'] + '  ' + row['key'])[:40]:<40} {cells[0]:>18} {cells[1]:>18}")


def _age(created_at: str) -> str:
    created = datetime.fromisoformat(created_at)
    created = created if created.tzinfo else created.replace(tzinfo=UTC)
    seconds = (datetime.now(UTC) - created).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} old"
    return "new"
